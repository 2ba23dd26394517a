"""The errors of the client. Each has a stable `code`; its message is a sentence for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional


class AudioCraftError(Exception):
    """An error of the server, or of the connection to it.

    `status` is None when the server did not respond, and for errors of tasks. `errors` maps each invalid field to
    sentences. After `retry_after` seconds the same request may succeed. A refused prompt has a `category`, and may
    have a `suggestion` of what to request instead.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "internal_error",
        status: Optional[int] = None,
        request_id: Optional[str] = None,
        retry_after: Optional[float] = None,
        errors: Optional[Mapping[str, list[str]]] = None,
        category: Optional[str] = None,
        suggestion: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.errors = dict(errors or {})
        self.category = category
        self.suggestion = suggestion


class InvalidRequestError(AudioCraftError):
    """The request is malformed or out of range."""


class UnauthorizedError(AudioCraftError):
    """The API key is missing or wrong."""


class ForbiddenError(AudioCraftError):
    """The API key does not have the required scope."""


class NotFoundError(AudioCraftError):
    """The resource does not exist, or belongs to another caller."""


class AudioGoneError(AudioCraftError):
    """The audio was generated but is no longer stored."""


class PromptRefusedError(AudioCraftError):
    """The prompt policy refused the prompt."""


class IdempotencyConflictError(AudioCraftError):
    """The idempotency key was already used with a different request."""


class LimitExceededError(AudioCraftError):
    """The caller is over a limit."""


class UnavailableError(AudioCraftError):
    """The server is full or not ready."""


class NotStreamableError(AudioCraftError):
    """The server generates audio on other machines and cannot stream it."""


class ModelBusyError(AudioCraftError):
    """The model is in use; wait, or try again later."""


class NoModelsHereError(AudioCraftError):
    """This server generates audio on other machines and loads no models."""


class DeadlineExceededError(AudioCraftError):
    """The audio was not ready in time."""


class GenerationFailedError(AudioCraftError):
    """The generation failed."""


class CanceledError(AudioCraftError):
    """The task was canceled."""


class ConnectionFailedError(AudioCraftError):
    """The server did not respond, or closed the connection before the end of the response."""


ERROR_CLASSES = {
    "invalid_request": InvalidRequestError,
    "invalid_melody": InvalidRequestError,
    "invalid_audio": InvalidRequestError,
    "payload_too_large": InvalidRequestError,
    "unsupported_media_type": InvalidRequestError,
    "unauthorized": UnauthorizedError,
    "forbidden": ForbiddenError,
    "not_found": NotFoundError,
    "audio_gone": AudioGoneError,
    "prompt_refused": PromptRefusedError,
    "idempotency_conflict": IdempotencyConflictError,
    "limit_exceeded": LimitExceededError,
    "too_many_tasks": LimitExceededError,
    "rate_limited": LimitExceededError,
    "quota_exceeded": LimitExceededError,
    "too_many_requests_at_once": LimitExceededError,
    "unavailable": UnavailableError,
    "queue_full": UnavailableError,
    "too_many_streams": UnavailableError,
    "model_unavailable": UnavailableError,
    "model_loading": UnavailableError,
    "engine_died": UnavailableError,
    "engine_stalled": UnavailableError,
    "out_of_memory": UnavailableError,
    "storage_unavailable": UnavailableError,
    "moderation_unavailable": UnavailableError,
    "shutting_down": UnavailableError,
    "not_streamable": NotStreamableError,
    "model_busy": ModelBusyError,
    "no_models_here": NoModelsHereError,
    "deadline_exceeded": DeadlineExceededError,
    "generation_failed": GenerationFailedError,
    "no_loop": GenerationFailedError,
    "conversion_failed": GenerationFailedError,
    "canceled": CanceledError,
    "connection_failed": ConnectionFailedError,
    "internal_error": AudioCraftError,
}
# For responses of proxies, which have no code.
_CODES_OF_STATUSES = {429: "limit_exceeded", 502: "unavailable", 503: "unavailable", 504: "deadline_exceeded"}
_DETAILS = ("errors", "category", "suggestion")


def create_error(message: str, code: str, **details: Any) -> AudioCraftError:
    """Return an error of the class of its code; an unknown code is kept on a plain `AudioCraftError`."""
    return ERROR_CLASSES.get(code, AudioCraftError)(message, code=code, **details)


def error_of_response(status: int, headers: Mapping[str, str], body: bytes) -> AudioCraftError:
    """Return the error that a response carries, also when a proxy and not the server made the response."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    try:
        retry_after: Optional[float] = float(headers.get("Retry-After", ""))
    except ValueError:
        retry_after = None
    return create_error(
        fields.get("error") or f"The server responded with status {status}.",
        fields.get("code") or _CODES_OF_STATUSES.get(status, "internal_error"),
        status=status,
        request_id=fields.get("request_id") or headers.get("X-Request-ID"),
        retry_after=retry_after,
        **{name: fields.get(name) for name in _DETAILS},
    )
