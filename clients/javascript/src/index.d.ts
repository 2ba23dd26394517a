import type {
  AppliedAnswer,
  ContinuationFields,
  ContinuationTaskFields,
  EndedAnswer,
  EndingAnswer,
  ErrorAnswer,
  ErrorResponse,
  FilteredPromptAnswer,
  GenerateBase64Response,
  GenerateFields,
  GenerateUrlResponse,
  HealthResponse,
  LiveFields,
  LivePromptFields,
  LiveSteerFields,
  MelodyFields,
  MelodyTaskFields,
  ModelResponse,
  ModelStateResponse,
  PerformanceResponse,
  RejectedAnswer,
  ResumedAnswer,
  StartedAnswer,
  StreamFields,
  TaskAcceptedResponse,
  TaskCanceledResponse,
  TaskCompletedResponse,
  TaskFailedResponse,
  TaskFields,
  TasksResponse,
  TaskWorkingResponse,
  UnderrunAnswer,
} from "./schema.js";

export type * from "./schema.js";

export type Task = TaskWorkingResponse | TaskCompletedResponse | TaskFailedResponse | TaskCanceledResponse;
/** A description of the music; null with `segments`, which have prompts of their own. */
export type Prompt = string | null;
export type Upload = Blob | ArrayBuffer | ArrayBufferView;
export type Melody = Upload;

export interface ClientOptions {
  /** URL of the server; by default the origin of the page, or http://localhost:5000 outside of a page. */
  baseUrl?: string;
  apiKey?: string;
  /** How often to repeat a request that is safe to repeat; 2 by default. A POST without an idempotency key is not. */
  maxRetries?: number;
  /** Do not repeat a request whose `Retry-After` is longer than this many seconds; 60 by default. */
  maxRetryAfter?: number;
  fetch?: typeof fetch;
  /** For live sessions where there is no global one, as in Node 20. */
  WebSocket?: typeof WebSocket;
}

export interface CallOptions {
  signal?: AbortSignal;
}

export interface WaitOptions extends CallOptions {
  /** Called with each state of the task that was polled. */
  onProgress?: (task: Task) => void;
  /** Milliseconds between polls; 1000 by default. */
  pollInterval?: number;
}

/** A melody: a recording or a MIDI file, or notes as text. */
export type MelodyOptions = {melody: Melody; notes?: undefined} | {melody?: undefined; notes: string};

/** With a melody, or with audio to continue, the request becomes a form for the endpoints that take them. */
export type GenerateOptions = CallOptions &
  (
    | (GenerateFields & {melody?: undefined; notes?: undefined; audio?: undefined})
    | (Omit<MelodyFields, "notes"> & MelodyOptions & {audio?: undefined})
    | (ContinuationFields & {audio: Upload; melody?: Melody})
  );

export type TaskOptions = CallOptions & {
  /** Random by default. A repeated submission with the same key returns the same task. */
  idempotencyKey?: string;
} & (
    | (TaskFields & {melody?: undefined; notes?: undefined; audio?: undefined})
    | (Omit<MelodyTaskFields, "notes"> & MelodyOptions & {audio?: undefined})
    | (ContinuationTaskFields & {audio: Upload; melody?: Melody})
  );

/** One text, or up to four texts with weights. */
export type LivePrompts = string | Array<string | LivePromptFields>;
export type LiveMessage =
  | StartedAnswer
  | AppliedAnswer
  | RejectedAnswer
  | FilteredPromptAnswer
  | UnderrunAnswer
  | ResumedAnswer
  | EndingAnswer
  | EndedAnswer
  | ErrorAnswer;

export type LiveOptions = CallOptions &
  LiveFields & {
    /** Called with every message of the server. */
    onMessage?: (message: LiveMessage) => void;
  };

export type StreamOptions = CallOptions & StreamFields;

/** The server of a call without a client. */
export type ServerOptions = Pick<ClientOptions, "baseUrl" | "apiKey">;

/** Generates audio and waits for it. */
export function generateAudio(
  prompt: Prompt,
  options: GenerateOptions & ServerOptions & {returnType: "base64"},
): Promise<GenerateBase64Response>;
export function generateAudio(prompt: Prompt, options?: GenerateOptions & ServerOptions): Promise<GenerateUrlResponse>;

/** Generates audio as a task and polls until it is completed. Aborting `signal` cancels the task. */
export function generateAudioAsync(
  prompt: Prompt,
  options?: TaskOptions & WaitOptions & ServerOptions,
): Promise<TaskCompletedResponse>;

/** A client of one server. */
export class AudioCraft {
  constructor(options?: ClientOptions);
  readonly tasks: Tasks;
  generateAudio(
    prompt: Prompt,
    options: GenerateOptions & {returnType: "base64"},
  ): Promise<GenerateBase64Response>;
  generateAudio(prompt: Prompt, options?: GenerateOptions): Promise<GenerateUrlResponse>;
  generateAudioAsync(prompt: Prompt, options?: TaskOptions & WaitOptions): Promise<TaskCompletedResponse>;
  /** Generates audio and receives it while it is generated. Resolves with the first audio. */
  stream(prompt: Prompt, options?: StreamOptions): Promise<AudioStream>;
  /** Generates audio that is changed while it is generated. Resolves when it begins. */
  live(prompts: LivePrompts, options?: LiveOptions): Promise<LiveSession>;
  /** Returns what was played in a live session, for the field `performance` of a request. */
  performance(id: string, options?: CallOptions): Promise<PerformanceResponse>;
  /** Returns the absolute URL of the audio of a result or a task, or of a stem, such as `result.stems.drums`. */
  audioUrl(of: {audio_url: string} | string): string;
  /** Downloads the audio of a result or a task, or a stem, with the key that an `<audio>` element cannot send. */
  download(of: {audio_url: string} | string, options?: CallOptions): Promise<Blob>;
  models(options?: CallOptions): Promise<ModelResponse[]>;
  /** Begins to load a model; `models` has the progress. Needs a key with the scope `admin`. */
  loadModel(name: string, options?: CallOptions): Promise<ModelStateResponse>;
  /** Unloads a model: once no request uses it, or only if none does. Needs a key with the scope `admin`. */
  unloadModel(name: string, options?: CallOptions & {whenBusy?: "wait" | "refuse"}): Promise<ModelStateResponse>;
  health(options?: CallOptions): Promise<HealthResponse>;
}

/** Tasks: generations that the server runs while nobody waits. */
export interface Tasks {
  submit(prompt: Prompt, options?: TaskOptions): Promise<TaskAcceptedResponse>;
  get(id: string, options?: CallOptions): Promise<Task>;
  /** Polls a task until it is completed. Throws the error of a failed task, or a `CanceledError`. */
  wait(id: string, options?: WaitOptions): Promise<TaskCompletedResponse>;
  /** Cancels a task: a queued one at once, a running one after its current step. A finished task does not change. */
  cancel(id: string, options?: CallOptions): Promise<Task>;
  /** Returns a page of tasks, newest first. */
  list(options?: CallOptions & {limit?: number; cursor?: string | null}): Promise<TasksResponse>;
  /** Yields the task after each change, and last its final state. Reconnects when the connection ends. */
  events(id: string, options?: CallOptions): AsyncGenerator<Task, void>;
}

/** Audio that arrives while it is generated: iterate over it, or read it whole. */
export class AudioStream implements AsyncIterable<Uint8Array> {
  private constructor();
  readonly seed: number;
  readonly model: string;
  readonly revision: string;
  /** In Hz. */
  readonly sampleRate: number;
  /** Seconds of audio in the whole stream. */
  readonly duration: number;
  readonly mediaType: string;
  readonly requestId: string;
  /** The bytes as a web stream, for `MediaSource`, `Response` or `pipeTo`. */
  readonly body: ReadableStream<Uint8Array>;
  /** Reads the rest of the audio. */
  blob(): Promise<Blob>;
  /** Yields the bytes as they arrive. Leaving the loop stops the generation. */
  [Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void>;
}

/**
 * A live session. Iterate over it to receive the audio, and call its methods to change the music. Each method resolves
 * with the frame at which the change takes effect, and rejects if the server does not accept the change.
 */
export class LiveSession implements AsyncIterable<Uint8Array> {
  private constructor();
  readonly seed: number;
  readonly model: string;
  readonly revision: string;
  readonly precision: string;
  /** Seconds that are generated ahead of playback. */
  readonly lead: number;
  /** In Hz. */
  readonly sampleRate: number;
  readonly channels: number;
  readonly mediaType: string;
  /** Frames per second. */
  readonly frameRate: number;
  readonly requestId: string;
  /** ID of the performance, which the server has once the session is over, however it ended. */
  readonly performance: string;
  /** What the server said when the music ended, with the ID of the performance; null before. */
  readonly ended: EndedAnswer | null;
  /** Changes prompts and controls. What is left out stays as it is; null takes away `bpm` or `key`. */
  steer(changes: LiveSteerFields & {prompts?: LivePrompts}): Promise<number>;
  play(): Promise<number>;
  /** Pauses the generation once the lead is complete. */
  pause(): Promise<number>;
  /** Begins new music, which does not continue what was played. */
  resetContext(): Promise<number>;
  /** Forgets the music from a second on. The audio after it begins at the frame that this resolves with. */
  seekBack(position: number, prompts?: LivePrompts): Promise<number>;
  /** Reports how many seconds were heard, so that no more than the lead is generated ahead of that. */
  reportPlayback(position: number): void;
  /** Ends the music. The audio that is complete still arrives. */
  stop(): Promise<number>;
  /** Yields the audio as it arrives, until the session ends. Leaving the loop ends it without a performance. */
  [Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void>;
}

export interface ErrorDetails {
  code?: string;
  status?: number;
  requestId?: string;
  retryAfter?: number;
  errors?: NonNullable<ErrorResponse["errors"]>;
  category?: string;
  suggestion?: string;
  cause?: unknown;
}

/** An error of the server, or of the connection to it. `code` is stable; the message is a sentence for people. */
export class AudioCraftError extends Error {
  constructor(message: string, details?: ErrorDetails);
  readonly code: string;
  /** HTTP status; undefined when the server did not respond, and for errors of tasks. */
  readonly status?: number;
  readonly requestId?: string;
  /** Seconds after which the request may succeed. */
  readonly retryAfter?: number;
  /** For each invalid field, the sentences that say what is wrong. */
  readonly errors?: Record<string, string[]>;
  /** Machine-readable reason why the prompt was refused. */
  readonly category?: string;
  /** What to request instead of a refused prompt. */
  readonly suggestion?: string;
}

export class InvalidRequestError extends AudioCraftError {}
export class UnauthorizedError extends AudioCraftError {}
export class ForbiddenError extends AudioCraftError {}
export class NotFoundError extends AudioCraftError {}
export class AudioGoneError extends AudioCraftError {}
export class PromptRefusedError extends AudioCraftError {}
export class IdempotencyConflictError extends AudioCraftError {}
export class LimitExceededError extends AudioCraftError {}
export class UnavailableError extends AudioCraftError {}
export class NotStreamableError extends AudioCraftError {}
export class ModelBusyError extends AudioCraftError {}
export class NoModelsHereError extends AudioCraftError {}
export class DeadlineExceededError extends AudioCraftError {}
export class GenerationFailedError extends AudioCraftError {}
export class CanceledError extends AudioCraftError {}
export class ConnectionError extends AudioCraftError {}

/** The class of each error code. */
export const ERROR_CLASSES: Readonly<Record<string, typeof AudioCraftError>>;
