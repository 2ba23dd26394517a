"""The types of fields, which validate and document them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from werkzeug.datastructures import FileStorage

from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.audio.notes import MAX_NOTES_CHARACTERS, NOTES_PATTERN, parse_notes
from audiocraft_api.core.constants import (
    CODEBOOK_SIZE,
    DEFAULT_EXTEND_STRIDE_SECONDS,
    MAX_BPM,
    MAX_CFG_COEF,
    MAX_DURATION_SECONDS,
    MAX_FADE_SECONDS,
    MAX_LONG_DURATION_SECONDS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_TEMPERATURE,
    MIN_BPM,
    MIN_DURATION_SECONDS,
    MIN_EXTEND_STRIDE_SECONDS,
    MIN_TEMPERATURE,
    WINDOW_SECONDS,
)

KEY = re.compile(r"^[A-G](#|b)? (major|minor)$")


# A character that is neither white space nor an invisible control character, both in JavaScript's regular expressions
# and in Python's.
_VISIBLE = r"[^\s\x1c-\x1f\x85\ufeff]"


def _whole(value: Any) -> Any:
    """Convert 250.0 to 250: JSON has one number type, and such a value is an integer (JSON Schema, 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_blank(text: str) -> str:
    if not re.search(_VISIBLE, text):
        raise ValueError("must not be blank")
    return text


def not_null(schema: dict[str, Any]) -> None:
    """Document a field that may be left out, but not be null."""
    schema.pop("default")
    schema |= schema.pop("anyOf")[0]


def either_not_null(schema: dict[str, Any]) -> None:
    """Document a field of two types that may be left out, but not be null."""
    schema.pop("default")
    schema["anyOf"] = schema["anyOf"][0]["oneOf"]


def _known_key(name: str) -> str:
    if not KEY.fullmatch(name):
        raise ValueError("must be a key such as C major, F# minor or Bb major")
    return name


def _readable_notes(text: str) -> str:
    parse_notes(text)
    return text


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}")
    return name


Whole = Annotated[int, BeforeValidator(_whole)]


Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_whole)]


Prompt = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, description="Description of the music; must not be blank."),
    AfterValidator(_not_blank),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS, "pattern": _VISIBLE}),
]


Duration = Annotated[float, Field(ge=MIN_DURATION_SECONDS, le=MAX_DURATION_SECONDS)]


LongDuration = Annotated[float, Field(ge=MIN_DURATION_SECONDS, le=MAX_LONG_DURATION_SECONDS)]


ExtendStride = Annotated[
    float,
    Field(
        ge=MIN_EXTEND_STRIDE_SECONDS,
        lt=WINDOW_SECONDS,
        description="Seconds of new audio in each window, for audio that is longer than the model's window. Lower "
        "values keep more of the audio in view and take more time. By default the model's (`GET /models`): "
        f"{DEFAULT_EXTEND_STRIDE_SECONDS:g} for windows of {WINDOW_SECONDS:g} seconds.",
    ),
]


OutputFormat = Annotated[str, AfterValidator(_known_format), WithJsonSchema({"type": "string", "enum": list(FORMATS)})]


Bpm = Annotated[int, Field(ge=MIN_BPM, le=MAX_BPM), BeforeValidator(_whole)]


Key = Annotated[str, AfterValidator(_known_key), WithJsonSchema({"type": "string", "pattern": KEY.pattern})]


TimeSignature = Literal["4/4", "3/4", "6/8"]


Notes = Annotated[
    str,
    Field(max_length=MAX_NOTES_CHARACTERS),
    AfterValidator(_readable_notes),
    WithJsonSchema({"type": "string", "maxLength": MAX_NOTES_CHARACTERS, "pattern": NOTES_PATTERN}),
]


Fade = Annotated[float, Field(ge=0, le=MAX_FADE_SECONDS)]


UploadedFile = Annotated[FileStorage, WithJsonSchema({"type": "string", "format": "binary"})]


Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]


TopK = Annotated[int, Field(ge=0, le=CODEBOOK_SIZE), BeforeValidator(_whole)]


TopP = Annotated[float, Field(ge=0, le=1)]


CfgCoef = Annotated[float, Field(ge=0, le=MAX_CFG_COEF)]
