"""The one tree of errors. Each has a stable `code`, an HTTP `status` and a sentence a person can act on.

    AudioCraftError
    ├── InvalidRequest (400)         names the fields
    │   └── InvalidMelody (400)
    ├── Unauthorized (401)           carries WWW-Authenticate
    ├── Forbidden (403)
    ├── NotFound (404)
    ├── AudioGone (410)
    ├── PayloadTooLarge (413)
    ├── UnsupportedMediaType (415)
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
    ├── Canceled (499)               the client canceled; no response is read
    │   └── ClientDisconnected
    ├── NotStreamable (501)
    └── GenerationFailed (500)
        └── ConversionFailed (500)

The HTTP layer maps them in one place; nothing below it knows of HTTP answers beyond these numbers.
"""

from __future__ import annotations


class AudioCraftError(Exception):
    """Base of all errors that an answer may show; `message` is the sentence."""

    code = "internal_error"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(AudioCraftError):
    """The request is malformed or out of range. `errors` maps each wrong field to its sentences."""

    code = "invalid_request"
    status = 400

    def __init__(self, message: str, errors: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.errors = errors or {}


class InvalidMelody(InvalidRequest):
    """The uploaded file is not a tune that can be used."""

    code = "invalid_melody"

    def __init__(self, message: str) -> None:
        super().__init__(message, {"melody": [message]})


class Unauthorized(AudioCraftError):
    """Nobody that this server knows asks."""

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
    """The audio was made and is not kept any more."""

    code = "audio_gone"
    status = 410


class PayloadTooLarge(AudioCraftError):
    code = "payload_too_large"
    status = 413


class UnsupportedMediaType(AudioCraftError):
    code = "unsupported_media_type"
    status = 415


class IdempotencyConflict(AudioCraftError):
    """The `Idempotency-Key` came before with another request."""

    code = "idempotency_conflict"
    status = 422


class PromptRefused(AudioCraftError):
    """The prompt policy does not allow the prompt; `suggestion` says what may be asked for instead."""

    code = "prompt_refused"
    status = 422

    def __init__(self, message: str, category: str = "", suggestion: str | None = None) -> None:
        super().__init__(message)
        self.category = category
        self.suggestion = suggestion


class LimitExceeded(AudioCraftError):
    """The caller asks for more than it may have; the same request may work after `retry_after_seconds`."""

    code = "limit_exceeded"
    status = 429

    def __init__(self, message: str, retry_after_seconds: float = 60.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyTasks(LimitExceeded):
    """The caller has as many unfinished tasks as it may have."""

    code = "too_many_tasks"


class RateLimited(LimitExceeded):
    """Too much within a minute."""

    code = "rate_limited"


class QuotaExceeded(LimitExceeded):
    """Too much on a day."""

    code = "quota_exceeded"


class TooManyRequestsAtOnce(LimitExceeded):
    code = "too_many_requests_at_once"


class Unavailable(AudioCraftError):
    """The service cannot do it now; the same request may work after `retry_after_seconds`."""

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
    """Whether the prompt is allowed cannot be told."""

    code = "moderation_unavailable"


class ShuttingDown(Unavailable):
    """The server is stopping and accepts no more work."""

    code = "shutting_down"

    def __init__(self, message: str = "The server is shutting down; try again in a moment.") -> None:
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
    """Audio is made where it cannot be heard meanwhile."""

    code = "not_streamable"
    status = 501


class GenerationFailed(AudioCraftError):
    code = "generation_failed"
    status = 500


class ConversionFailed(GenerationFailed):
    code = "conversion_failed"


def error_of(code: str, message: str) -> AudioCraftError:
    """Return the error that a kept `code` stands for; a code that no class has is kept, as an internal error."""
    kinds = [AudioCraftError]
    for kind in kinds:
        if kind.code == code:
            return kind(message)
        kinds += kind.__subclasses__()
    error = AudioCraftError(message)
    error.code = code
    return error
