import {ConnectionError} from "./errors.js";
import {fieldsOf} from "./fields.js";
import {createError} from "./responses.js";

/**
 * A live session. Iterate over it to receive the audio, and call its methods to change the music. Each method resolves
 * with the frame at which the change takes effect.
 */
export class LiveSession {
  #socket;
  #onMessage;
  #signal;
  #blocks = [];
  #waiting = new Map(); // the callers whose messages have no answer yet, by ID
  #nextId = 1;
  #wake = () => {};
  #opened;
  #isOver = false;
  #error = null;
  /** What the server said when the music ended; null before. */
  ended = null;

  /** Resolves once the music begins. `open()` returns a WebSocket. */
  static open(open, prompts, {onMessage = () => {}, signal, ...options}) {
    signal?.throwIfAborted();
    const session = new LiveSession(open(), onMessage, signal);
    const start = {type: "start", prompts: promptsOf(prompts), ...fieldsOf(undefined, options)};
    if (options.format) start.format = options.format; // of a stream, and not of a file
    delete start.output_format;
    return session.#begin(start);
  }

  constructor(socket, onMessage, signal) {
    this.#socket = socket;
    this.#onMessage = onMessage;
    this.#signal = signal;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({data}) => (typeof data === "string" ? this.#receive(JSON.parse(data)) : this.#push(data));
    socket.onclose = () => this.#close();
    socket.onerror = () => this.#close(); // Node 20 does not close a socket that the server refused
    signal?.addEventListener("abort", this.#abort, {once: true});
  }

  /** Changes prompts and controls. What is left out stays as it is; null takes away `bpm` or `key`. */
  async steer({prompts, transition, ...controls}) {
    const changes = [];
    if (prompts !== undefined) {
      changes.push(this.#send({type: "prompts", prompts: promptsOf(prompts), transition}));
    } else if (transition !== undefined) {
      changes.push(this.#send({type: "transition", seconds: transition}));
    }
    if (Object.keys(controls).length) {
      const words = Object.entries(controls).filter(([, value]) => value === null);
      changes.push(this.#send({type: "config", ...fieldsOf(undefined, controls), ...Object.fromEntries(words)}));
    }
    return Math.max(...(await Promise.all(changes)));
  }

  /** Lets the music go on. */
  play() {
    return this.#send({type: "play"});
  }

  /** Pauses the generation once the lead is complete. */
  pause() {
    return this.#send({type: "pause"});
  }

  /** Begins new music, which does not continue what was played. */
  resetContext() {
    return this.#send({type: "reset_context"});
  }

  /** Forgets the music from a second on. The audio after it begins at the frame that this resolves with. */
  seekBack(position, prompts) {
    return this.#send({type: "seek_back", position, ...(prompts && {prompts: promptsOf(prompts)})});
  }

  /** Reports how many seconds were heard, so that no more than the lead is generated ahead of that. */
  reportPlayback(position) {
    if (!this.#isOver) this.#socket.send(JSON.stringify({type: "playback", position}));
  }

  /** Ends the music. The audio that is complete still arrives. */
  stop() {
    return this.#send({type: "stop"});
  }

  /** Yields the audio as it arrives, until the session ends. Leaving the loop ends it, too. */
  async *[Symbol.asyncIterator]() {
    try {
      while (true) {
        while (this.#blocks.length) yield this.#blocks.shift();
        if (this.#error) throw this.#error;
        if (this.#isOver) return;
        await new Promise((resolve) => (this.#wake = resolve));
      }
    } finally {
      this.#socket.close();
    }
  }

  #begin(start) {
    this.#socket.onopen = () => this.#socket.send(JSON.stringify(start));
    return new Promise((resolve, reject) => (this.#opened = {resolve, reject}));
  }

  #send(message) {
    const id = String(this.#nextId++);
    const answer = new Promise((resolve, reject) => {
      if (this.#isOver) return reject(this.#error ?? ended());
      this.#waiting.set(id, {resolve, reject, type: message.type});
      return this.#socket.send(JSON.stringify({...message, id}));
    });
    answer.catch(() => {}); // callers may leave it to `onMessage`
    return answer;
  }

  #push(data) {
    this.#blocks.push(new Uint8Array(data));
    this.#wake();
  }

  #receive(message) {
    const {type, id, frame} = message;
    const caller = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (type === "started") {
      const {seed, model, revision, precision, lead, channels, performance} = message;
      Object.assign(this, {seed, model, revision, precision, lead, channels, performance});
      Object.assign(this, {sampleRate: message.sample_rate, mediaType: message.media_type});
      Object.assign(this, {frameRate: message.frame_rate, requestId: message.request_id});
      this.#opened.resolve(this);
    } else if (type === "ended") this.ended = message;
    else if (type === "error") this.#error = errorOf(message);
    else if (type === "applied") {
      if (caller?.type === "seek_back") this.#blocks.length = 0;
      caller?.resolve(frame);
    } else if (type === "rejected" || type === "filtered_prompt") caller?.reject(errorOf(message));
    this.#onMessage(message);
  }

  #close() {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#signal?.removeEventListener("abort", this.#abort);
    if (!this.ended) {
      const message = "The server closed the connection, or refused it.";
      this.#error ??= new ConnectionError(message, {code: "connection_failed"});
    }
    this.#opened.reject(this.#error ?? ended()); // without effect if the music has begun
    for (const {reject} of this.#waiting.values()) reject(this.#error ?? ended());
    this.#waiting.clear();
    this.#wake();
  }

  #abort = () => {
    this.#error = this.#signal.reason;
    this.#blocks.length = 0;
    this.#socket.close();
  };
}

const ended = () => createError("The session has ended.", {code: "canceled"});

const errorOf = ({error, code, request_id: requestId, retry_after: retryAfter, errors, category, suggestion}) =>
  createError(error, {
    code,
    ...(requestId && {requestId}),
    ...(retryAfter && {retryAfter}),
    ...(errors && {errors}),
    ...(category && {category}),
    ...(suggestion && {suggestion}),
  });

/** Returns prompts as the server takes them: one text, or a list of texts and of `{text, weight}`. */
function promptsOf(prompts) {
  return [prompts].flat().map((prompt) => (typeof prompt === "string" ? {text: prompt} : prompt));
}
