"""The schemas of multipart forms: requests with a melody or with a recording to continue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from audiocraft_api.audio.notes import DEFAULT_BPM
from audiocraft_api.audio.upload import ACCEPTED_FORMATS
from audiocraft_api.core.constants import MAX_DURATION_SECONDS
from audiocraft_api.generation.continuation import Part
from audiocraft_api.web.schemas.continue_from import INCLUDE_INPUT, PART_END, PART_START
from audiocraft_api.web.schemas.field_types import Bpm, Duration, LongDuration, Notes, Prompt, UploadedFile, not_null
from audiocraft_api.web.schemas.generation import FileFields, GenerationFields, ReturnFields

MELODY_FILES = f"a {ACCEPTED_FORMATS} file, or a MIDI file, of which the highest notes are followed"


class FormFields(FileFields, GenerationFields):
    """What all multipart forms with a file have in common."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    FILE_FIELD: ClassVar[str]
    IN_PLACE_OF_FILE: ClassVar[str | None] = None  # a field
    MISSING_FILE: ClassVar[str]

    prompt: Prompt
    bpm: Bpm | None = Field(
        None,
        description="Tempo in beats per minute, added to the prompt in words. It is also that of `notes`, and then "
        f"{DEFAULT_BPM} when omitted.",
    )
    melody: UploadedFile | None = Field(
        None, description=f"A melody to follow: {MELODY_FILES}.", json_schema_extra=not_null
    )
    notes: Notes | None = Field(
        None,
        description="A melody to follow, in place of a file: pitches or `-` for a rest, each with its length in beats, "
        "such as `C4:1 E4:1/2 -:0.5 Bb3:2`. A beat lasts 60 / `bpm` seconds.",
        json_schema_extra=not_null,
    )

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> dict[str, str]:
        return {"notes": "cannot be combined with melody"} if {"melody", "notes"} <= given.keys() else {}


class MelodyFields(FormFields):
    """Fields of requests with a melody that differ from requests without one."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["melody"], "properties": {"notes": False}},
                {"required": ["notes"], "properties": {"melody": False}},
            ]
        }
    )

    FILE_FIELD = "melody"
    IN_PLACE_OF_FILE = "notes"
    MISSING_FILE = "No melody file provided"

    model_size: str = Field(
        "medium", max_length=64, description="Name of a model from `GET /models` that follows a melody."
    )
    duration: LongDuration = Field(10.0, description="Duration of the audio in seconds.")


class MelodyRequest(ReturnFields, MelodyFields):
    """A multipart form with a melody: a file or notes. Numbers are sent as text."""

    LONGEST = MAX_DURATION_SECONDS

    duration: Duration = Field(10.0, description="Duration of the audio in seconds.")


class ContinuationFields(FormFields):
    """Fields of requests that continue an uploaded recording."""

    FILE_FIELD = "audio"
    MISSING_FILE = "No audio file provided"

    audio: UploadedFile = Field(description=f"The recording to continue: a {ACCEPTED_FORMATS} file.")
    duration: LongDuration = Field(5.0, description="Duration of the new audio in seconds.")
    start: float | None = Field(
        None,
        ge=0,
        description=PART_START,
        json_schema_extra=not_null,
    )
    end: float | None = Field(
        None,
        gt=0,
        description=PART_END,
        json_schema_extra=not_null,
    )
    include_input: bool = Field(True, description=INCLUDE_INPUT)

    @property
    def part(self) -> Part:
        return Part(self.start, self.end)


class ContinuationRequest(ReturnFields, ContinuationFields):
    """A multipart form with a recording to continue. Numbers are sent as text."""

    LONGEST = MAX_DURATION_SECONDS

    duration: Duration = Field(5.0, description="Duration of the new audio in seconds.")
