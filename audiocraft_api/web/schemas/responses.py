"""The schemas of responses with audio, of health checks and of errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audiocraft_api.tasks.view import VARIATIONS, AudioFields, FailedVariationResponse, is_unused
from audiocraft_api.web.schemas.base import ResponseSchema


class UrlVariation(AudioFields):
    """One of several variations, for `return_type` `url`."""

    audio_url: str = Field(description="Path of the audio file on this server.")


class Base64Variation(AudioFields):
    """One of several variations, for `return_type` `base64`."""

    audio: str = Field(description="The audio file in standard base64.")


class _Success(ResponseSchema):
    success: Literal[True] = True


class _GenerateResponse(AudioFields, _Success):
    request_id: str


class GenerateUrlResponse(_GenerateResponse):
    """The response for `return_type` `url`. With several variations, it has the fields of the first that was made."""

    audio_url: str = Field(description="Path of the audio file on this server.")
    variations: list[UrlVariation | FailedVariationResponse] | None = Field(
        None, description=VARIATIONS, exclude_if=is_unused
    )


class GenerateBase64Response(_GenerateResponse):
    """The response for `return_type` `base64`, otherwise as for `url`."""

    audio: str = Field(description="The audio file in standard base64.")
    variations: list[Base64Variation | FailedVariationResponse] | None = Field(
        None, description=VARIATIONS, exclude_if=is_unused
    )


class QueueResponse(ResponseSchema):
    waiting: int = Field(description="Requests waiting for the engine, plus queued tasks.")
    running: int


class HealthResponse(ResponseSchema):
    status: Literal["healthy"] = "healthy"
    version: str
    models_loaded: list[str] = Field(description="Names of the models in memory.")
    device: str = Field(description="Device that models run on; `auto` until the first model is loaded.")
    cpu_kernels: str | None = Field(
        description="Instructions that the kernels on the CPU use: `amx`, `avx512-vnni`, `avx512`, `avx-vnni`, `avx2`, "
        "`neon-dotprod` or `portable`; `pytorch` if the native kernels are not used. `null` until they are loaded, on "
        "other devices, and on servers whose tasks Celery workers run."
    )
    queue: QueueResponse


class ReadyResponse(ResponseSchema):
    status: Literal["ready"] = "ready"


class ErrorResponse(ResponseSchema):
    error: str = Field(description="A sentence that says what is wrong and what to do.")
    code: str = Field(description="Machine-readable error code.")
    request_id: str
    errors: dict[str, list[str]] | None = Field(
        None, description="For each invalid field, the sentences that say what is wrong."
    )
    category: str | None = Field(None, description="Machine-readable reason why the prompt was refused.")
    suggestion: str | None = Field(None, description="What to request instead of a refused prompt.")


class TaskErrorResponse(ErrorResponse):
    """An error that polling the task again would not change."""

    status: Literal["failed"] = Field("failed", description="For clients that poll until a final `status`.")
