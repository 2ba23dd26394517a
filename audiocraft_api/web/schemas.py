"""The one source of what requests and answers look like: it validates, and OpenAPI is made from it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from werkzeug.datastructures import FileStorage

from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.core.constants import (
    CODEBOOK_SIZE,
    DEFAULT_CFG_COEF,
    DEFAULT_TOP_K,
    MAX_CFG_COEF,
    MAX_DURATION_SECONDS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_TEMPERATURE,
    MIN_DURATION_SECONDS,
    MIN_TEMPERATURE,
)
from audiocraft_api.tasks.view import RecipeResponse


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 250.0 is an integer (JSON Schema, 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Something that is neither white space nor an invisible control, in JavaScript's regular expressions and Python's alike.
_VISIBLE = r"[^\s\x1c-\x1f\x85\ufeff]"


def _not_blank(text: str) -> str:
    if not re.search(_VISIBLE, text):
        raise ValueError("must not be blank")
    return text


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}")
    return name


Whole = Annotated[int, BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_whole)]
Prompt = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, description="What the music should be like; not blank."),
    AfterValidator(_not_blank),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS, "pattern": _VISIBLE}),
]
OutputFormat = Annotated[str, AfterValidator(_known_format), WithJsonSchema({"type": "string", "enum": list(FORMATS)})]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class StreamRequest(_Request):
    """A text-to-music request whose audio is sent while it is made."""

    prompt: Prompt
    model_size: str = Field("small", max_length=64, description="A text-to-music model of `GET /models`.")
    duration: float = Field(
        5.0, ge=MIN_DURATION_SECONDS, le=MAX_DURATION_SECONDS, description="Seconds of audio to make."
    )
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="Higher is more varied, lower more predictable."
    )
    top_k: Whole = Field(
        DEFAULT_TOP_K, ge=0, le=CODEBOOK_SIZE, description="Sample from so many most likely tokens; 0 is off."
    )
    top_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Sample from the likely tokens of this total probability, instead of `top_k`; 0 is off.",
    )
    cfg_coef: float = Field(DEFAULT_CFG_COEF, ge=0, le=MAX_CFG_COEF, description="How closely to follow the prompt.")
    seed: Seed | None = Field(None, description="The same seed and fields make the same audio; drawn when left out.")
    output_format: OutputFormat = Field("wav", description="Format of the audio.")


class GenerateRequest(StreamRequest):
    """A text-to-music request."""

    return_type: Literal["url", "base64"] = Field("url", description="A link to the file, or the file in the answer.")


class MelodyFields(StreamRequest):
    """What a request that follows an uploaded tune has beside, or other than, one that does not."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model_size: str = Field("medium", max_length=64, description="A model of `GET /models` that follows a tune.")
    duration: float = Field(
        10.0, ge=MIN_DURATION_SECONDS, le=MAX_DURATION_SECONDS, description="Seconds of audio to make."
    )
    melody: Annotated[FileStorage, WithJsonSchema({"type": "string", "format": "binary"})] = Field(
        description="The tune: a WAV, MP3, OGG or FLAC file."
    )


class MelodyRequest(MelodyFields, GenerateRequest):
    """A request that follows an uploaded tune; a form, numbers as text."""


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class _GenerateResponse(_Response):
    success: Literal[True] = True
    generation_time: float = Field(description="Seconds that the generation took.")
    format: str
    sample_rate: int = Field(description="Hz.")
    duration: float = Field(description="Seconds of audio in the file.")
    seed: int = Field(description="Send it again for the same audio.")
    model: str = Field(description="Public name of the checkpoint.")
    revision: str = Field(description="Revision of the checkpoint.")
    cached: bool = Field(False, description="Whether the audio was there already, made for an equal request.")
    recipe: RecipeResponse | None = Field(None, description="How it was made; null only for tasks of an older release.")
    request_id: str


class GenerateUrlResponse(_GenerateResponse):
    """The answer for `return_type` `url`."""

    audio_url: str = Field(description="Path of the file on this server.")


class GenerateBase64Response(_GenerateResponse):
    """The answer for `return_type` `base64`."""

    audio: str = Field(description="The file in standard base64.")


class QueueResponse(_Response):
    waiting: int = Field(description="Requests that wait for the engine, and tasks that are queued.")
    running: int


class HealthResponse(_Response):
    status: Literal["healthy"] = "healthy"
    version: str
    models_loaded: list[str] = Field(description="Public names of the models in memory.")
    device: str = Field(description="Where models run; `auto` until the first one is loaded.")
    queue: QueueResponse


class ReadyResponse(_Response):
    status: Literal["ready"] = "ready"


class ModelResponse(_Response):
    name: str = Field(description="What `model_size` takes.")
    description: str
    checkpoint: str = Field(description="Hub id or directory; `built-in` is made on this machine.")
    revision: str | None = Field(description="Pinned revision of the hub, if any.")
    loaded_revision: str | None = Field(description="Revision of the checkpoint in memory, which answers name, if any.")
    sha256: str | None = Field(description="Pinned SHA-256 of its `state_dict.bin`, if any.")
    codec_sha256: str | None = Field(description="Pinned SHA-256 of its `compression_state_dict.bin`, if any.")
    text: bool = Field(description="Makes music from text alone.")
    melody: bool = Field(description="Follows a tune.")
    channels: int
    sample_rate: int = Field(description="Hz.")
    max_duration: float = Field(description="Longest audio in seconds.")
    loaded: bool = Field(description="In memory now.")
    licence: str = Field(description="Licence of the weights.")
    commercial_use: bool = Field(description="Whether that licence allows commercial use.")
    allowed: bool = Field(description="Whether this server lets the model be used.")


class ModelsResponse(_Response):
    models: list[ModelResponse]


class ErrorResponse(_Response):
    error: str = Field(description="One sentence to act on.")
    code: str = Field(description="The kind of error, for programs.")
    request_id: str
    errors: dict[str, list[str]] | None = Field(None, description="Sentences by field, where fields are wrong.")
    category: str | None = Field(None, description="Why a prompt is refused, for programs.")
    suggestion: str | None = Field(None, description="What may be asked for in place of a refused prompt.")
