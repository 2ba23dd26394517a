/** An error of the server, or of the connection to it. `code` is stable; the message is a sentence for people. */
export class AudioCraftError extends Error {
  /**
   * @param {string} message
   * @param {{code?: string, status?: number, requestId?: string, retryAfter?: number, errors?: object,
   *   category?: string, suggestion?: string, cause?: unknown}} [details]
   */
  constructor(message, {cause, code = "internal_error", ...details} = {}) {
    super(message, cause === undefined ? undefined : {cause});
    this.name = new.target.name;
    Object.assign(this, {code, ...details});
  }
}

/** The request is malformed or out of range; `errors` maps each invalid field to sentences. */
export class InvalidRequestError extends AudioCraftError {}
/** The API key is missing or wrong. */
export class UnauthorizedError extends AudioCraftError {}
/** The API key does not have the required scope. */
export class ForbiddenError extends AudioCraftError {}
/** The resource does not exist, or belongs to another caller. */
export class NotFoundError extends AudioCraftError {}
/** The audio was generated but is no longer stored. */
export class AudioGoneError extends AudioCraftError {}
/** The prompt policy refused the prompt; `category` says why, `suggestion` what to request instead. */
export class PromptRefusedError extends AudioCraftError {}
/** The idempotency key was already used with a different request. */
export class IdempotencyConflictError extends AudioCraftError {}
/** You are over a limit; try again after `retryAfter` seconds. */
export class LimitExceededError extends AudioCraftError {}
/** The server is full or not ready; try again after `retryAfter` seconds. */
export class UnavailableError extends AudioCraftError {}
/** This server generates audio on other machines and cannot stream it. */
export class NotStreamableError extends AudioCraftError {}
/** The model is in use; wait, or try again later. */
export class ModelBusyError extends AudioCraftError {}
/** This server generates audio on other machines and loads no models. */
export class NoModelsHereError extends AudioCraftError {}
/** The audio was not ready in time. */
export class DeadlineExceededError extends AudioCraftError {}
/** The generation failed. */
export class GenerationFailedError extends AudioCraftError {}
/** The task was canceled. */
export class CanceledError extends AudioCraftError {}
/** The server did not respond, or closed the connection before the end of the response. */
export class ConnectionError extends AudioCraftError {}

/** The class of each error code. */
export const ERROR_CLASSES = Object.freeze({
  invalid_request: InvalidRequestError,
  invalid_melody: InvalidRequestError,
  invalid_audio: InvalidRequestError,
  payload_too_large: InvalidRequestError,
  unsupported_media_type: InvalidRequestError,
  unauthorized: UnauthorizedError,
  forbidden: ForbiddenError,
  not_found: NotFoundError,
  audio_gone: AudioGoneError,
  prompt_refused: PromptRefusedError,
  idempotency_conflict: IdempotencyConflictError,
  limit_exceeded: LimitExceededError,
  too_many_tasks: LimitExceededError,
  rate_limited: LimitExceededError,
  quota_exceeded: LimitExceededError,
  too_many_requests_at_once: LimitExceededError,
  unavailable: UnavailableError,
  queue_full: UnavailableError,
  too_many_streams: UnavailableError,
  model_unavailable: UnavailableError,
  model_loading: UnavailableError,
  engine_died: UnavailableError,
  engine_stalled: UnavailableError,
  out_of_memory: UnavailableError,
  storage_unavailable: UnavailableError,
  moderation_unavailable: UnavailableError,
  shutting_down: UnavailableError,
  not_streamable: NotStreamableError,
  model_busy: ModelBusyError,
  no_models_here: NoModelsHereError,
  deadline_exceeded: DeadlineExceededError,
  generation_failed: GenerationFailedError,
  no_loop: GenerationFailedError,
  conversion_failed: GenerationFailedError,
  canceled: CanceledError,
  connection_failed: ConnectionError,
  internal_error: AudioCraftError,
});
