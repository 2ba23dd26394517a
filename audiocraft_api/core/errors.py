"""The hierarchy of errors. Each has a stable `code`, an HTTP `status` and a message that says what to do.

    AudioCraftError
    ├── InvalidRequest (400)         names the fields
    │   ├── InvalidMelody (400)
    │   └── InvalidAudio (400)
    ├── Unauthorized (401)           carries WWW-Authenticate
    ├── Forbidden (403)
    ├── NotFound (404)
    ├── AudioGone (410)
    ├── PayloadTooLarge (413)
    ├── UnsupportedMediaType (415)
    ├── ModelBusy (409)
    ├── IdempotencyConflict (422)
    ├── PromptRefused (422)          names the category
    ├── LimitExceeded (429)          carries Retry-After
    │   ├── TooManyTasks
    │   ├── RateLimited
    │   ├── QuotaExceeded
    │   └── TooManyRequestsAtOnce
    ├── Unavailable (503)            carries Retry-After
    │   ├── QueueFull
    │   ├── TooManyStreams
    │   ├── ModelUnavailable
    │   ├── ModelLoading
    │   ├── EngineDied
    │   ├── EngineStalled
    │   ├── OutOfMemory
    │   ├── StorageUnavailable
    │   ├── ModerationUnavailable
    │   └── ShuttingDown
    ├── DeadlineExceeded (504)
    ├── Canceled (499)               the client canceled and reads no response
    │   └── ClientDisconnected
    ├── NotStreamable (501)
    ├── NoModelsHere (501)
    └── GenerationFailed (500)
        └── ConversionFailed (500)

`web` maps them to responses in one place. No package below it knows HTTP beyond these status codes.
"""

from __future__ import annotations


class AudioCraftError(Exception):
    """Base class of all errors that a response may contain. `message` is a complete sentence."""

    code = "internal_error"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(AudioCraftError):
    """The request is malformed or out of range. `errors` maps each invalid field to its messages."""

    code = "invalid_request"
    status = 400

    def __init__(self, message: str, errors: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.errors = errors or {}


class InvalidMelody(InvalidRequest):
    """The uploaded file cannot be used as a melody."""

    code = "invalid_melody"

    def __init__(self, message: str) -> None:
        super().__init__(message, {"melody": [message]})


class InvalidAudio(InvalidRequest):
    """The uploaded file cannot be continued."""

    code = "invalid_audio"

    def __init__(self, message: str) -> None:
        super().__init__(message, {"audio": [message]})


class Unauthorized(AudioCraftError):
    """The credential is missing or invalid."""

    code = "unauthorized"
    status = 401

    def __init__(self, message: str = "Invalid or missing API key") -> None:
        super().__init__(message)


class Forbidden(AudioCraftError):
    code = "forbidden"
    status = 403


class NotFound(AudioCraftError):
    code = "not_found"
    status = 404


class AudioGone(AudioCraftError):
    """The audio existed and has been deleted."""

    code = "audio_gone"
    status = 410


class PayloadTooLarge(AudioCraftError):
    code = "payload_too_large"
    status = 413


class UnsupportedMediaType(AudioCraftError):
    code = "unsupported_media_type"
    status = 415


class ModelBusy(AudioCraftError):
    """The model is in use, and the caller did not want to wait."""

    code = "model_busy"
    status = 409


class IdempotencyConflict(AudioCraftError):
    """The `Idempotency-Key` was already used with a different request."""

    code = "idempotency_conflict"
    status = 422


class NoLoop(AudioCraftError):
    """No candidate loops at the tempo that was asked for."""

    code = "no_loop"
    status = 422


class PromptRefused(AudioCraftError):
    """The prompt policy refuses a prompt. `suggestion` says what to request instead."""

    code = "prompt_refused"
    status = 422

    def __init__(self, message: str, category: str = "", suggestion: str | None = None, *, prompt: str = "") -> None:
        super().__init__(message)
        self.category = category
        self.suggestion = suggestion
        self.prompt = prompt


class LimitExceeded(AudioCraftError):
    """The caller is over a limit. The same request may succeed after `retry_after_seconds`."""

    code = "limit_exceeded"
    status = 429

    def __init__(self, message: str, retry_after_seconds: float = 60.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyTasks(LimitExceeded):
    """The caller has reached its limit of unfinished tasks."""

    code = "too_many_tasks"


class RateLimited(LimitExceeded):
    """The caller is over its limit per minute."""

    code = "rate_limited"


class QuotaExceeded(LimitExceeded):
    """The caller is over its daily quota."""

    code = "quota_exceeded"


class TooManyRequestsAtOnce(LimitExceeded):
    """The caller has reached its limit of concurrent requests."""

    code = "too_many_requests_at_once"


class Unavailable(AudioCraftError):
    """The service cannot serve the request now. The same request may succeed after `retry_after_seconds`."""

    code = "unavailable"
    status = 503

    def __init__(self, message: str, retry_after_seconds: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Unavailable):
    code = "queue_full"


class TooManyStreams(Unavailable):
    code = "too_many_streams"


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class ModelLoading(Unavailable):
    code = "model_loading"


class EngineDied(Unavailable):
    code = "engine_died"


class EngineStalled(Unavailable):
    code = "engine_stalled"


class OutOfMemory(Unavailable):
    code = "out_of_memory"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class ModerationUnavailable(Unavailable):
    """The moderation service did not decide whether the prompt is allowed."""

    code = "moderation_unavailable"


class ShuttingDown(Unavailable):
    """The server is stopping and accepts no more work."""

    code = "shutting_down"

    def __init__(self, message: str = "The server is shutting down. Try again in a moment.") -> None:
        super().__init__(message)


class DeadlineExceeded(AudioCraftError):
    code = "deadline_exceeded"
    status = 504


class Canceled(AudioCraftError):
    """The client canceled the generation or disconnected. Proxies log such a request with status 499."""

    code = "canceled"
    status = 499

    def __init__(self, message: str = "The generation was canceled.") -> None:
        super().__init__(message)


class ClientDisconnected(Canceled):
    """The client closed its connection before the response was complete."""

    def __init__(self) -> None:
        super().__init__("The client disconnected.")


class NotStreamable(AudioCraftError):
    """Audio is generated in another process, which cannot send it while it is being generated."""

    code = "not_streamable"
    status = 501


class NoModelsHere(AudioCraftError):
    """This server has no models in memory: other processes have."""

    code = "no_models_here"
    status = 501


class GenerationFailed(AudioCraftError):
    code = "generation_failed"
    status = 500


class ConversionFailed(GenerationFailed):
    code = "conversion_failed"


def error_of(code: str, message: str) -> AudioCraftError:
    """Return an error of the class with the stored `code`. An unknown code is kept on a plain `AudioCraftError`."""
    kinds = [AudioCraftError]
    for kind in kinds:
        if kind.code == code:
            return kind(message)
        kinds += kind.__subclasses__()
    error = AudioCraftError(message)
    error.code = code
    return error
