"""The schemas of requests for audio from text, and the fields that all requests for audio share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from audiocraft_api.core.constants import (
    CODEBOOK_SIZE,
    DEFAULT_CANDIDATES,
    DEFAULT_CFG_COEF,
    DEFAULT_TOP_K,
    MAX_BARS,
    MAX_CANDIDATES,
    MAX_CFG_COEF,
    MAX_DURATION_SECONDS,
    MAX_LONG_DURATION_SECONDS,
    MAX_LOUDNESS_LUFS,
    MAX_SEGMENTS,
    MAX_TEMPERATURE,
    MAX_TRUE_PEAK_DBTP,
    MAX_VARIATIONS,
    MIN_LOUDNESS_LUFS,
    MIN_SEGMENT_SECONDS,
    MIN_TEMPERATURE,
    SILENCE_DBFS,
)
from audiocraft_api.core.params import Segment
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.continue_from import ContinueFromFields
from audiocraft_api.web.schemas.field_types import (
    Bpm,
    Duration,
    ExtendStride,
    Fade,
    Key,
    LongDuration,
    OutputFormat,
    Prompt,
    Seed,
    TimeSignature,
    Whole,
    either_not_null,
    not_null,
)
from audiocraft_api.web.schemas.performance import PERFORMED, EitherPerformance

NEEDS_WHOLE_AUDIO = "needs the whole audio, which a stream does not have; use a route that returns files"


# Other formats add samples at the start and the end, so that a loop would have a gap.
LOOP_FORMATS = ("wav", "wav24", "wav32f", "flac", "ogg")


def _one(number: int) -> int:
    if number != 1:
        raise ValueError("must be 1 for a stream; send variations to a route that returns files")
    return number


DEMO_EXAMPLE = {"prompt": "warm analog synth arpeggio, 100 bpm", "model_size": "demo", "duration": 2, "seed": 7}


MP3_EXAMPLE = {"prompt": "solo cello", "model_size": "demo", "duration": 1, "output_format": "mp3"}


class SegmentFields(RequestSchema):
    """A part of the audio with a prompt of its own."""

    prompt: Prompt
    duration: float = Field(
        ge=MIN_SEGMENT_SECONDS, le=MAX_LONG_DURATION_SECONDS, description="Duration of the segment in seconds."
    )
    negative_prompt: Prompt | None = Field(
        None, description="What this segment should not sound like; the request's `negative_prompt` when omitted."
    )


class GenerationFields(RequestSchema):
    """What all requests for audio have in common."""

    LONGEST: ClassVar[float] = MAX_LONG_DURATION_SECONDS

    prompt: Prompt | None = Field(None, json_schema_extra=not_null)
    model_size: str = Field("small", max_length=64, description="Name of a text-to-music model from `GET /models`.")
    duration: LongDuration = Field(5.0, description="Duration of the audio in seconds.")
    extend_stride: ExtendStride | None = None
    negative_prompt: Prompt | None = Field(
        None, description="What the music should not sound like. Needs a `cfg_coef` other than 1."
    )
    temperature: float = Field(
        1.0,
        ge=MIN_TEMPERATURE,
        le=MAX_TEMPERATURE,
        description="Sampling temperature. Higher values give more varied music, lower values more predictable music.",
    )
    top_k: Whole = Field(
        DEFAULT_TOP_K,
        ge=0,
        le=CODEBOOK_SIZE,
        description="Sample from the `top_k` most likely tokens; 0 turns this off.",
    )
    top_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Sample from the most likely tokens with this total probability, instead of `top_k`; "
        "0 turns this off.",
    )
    cfg_coef: float = Field(
        DEFAULT_CFG_COEF,
        ge=0,
        le=MAX_CFG_COEF,
        description="Classifier-free guidance: how closely the audio follows the prompt.",
    )
    seed: Seed | None = Field(
        None, description="The same seed with the same fields generates the same audio; random when omitted."
    )
    output_format: OutputFormat = Field("wav", description="Audio format.")
    n: Whole = Field(
        1,
        ge=1,
        le=MAX_VARIATIONS,
        description="Number of variations, which differ in their seeds: `seed`, `seed` + 1 and so on, modulo 2**53. "
        f"All together may have {MAX_LONG_DURATION_SECONDS:g} seconds.",
    )
    bpm: Bpm | None = Field(None, description="Tempo in beats per minute, added to the prompt in words.")
    key: Key | None = Field(None, description="Key, such as `F# minor`, added to the prompt in words.")
    time_signature: TimeSignature | None = Field(None, description="Time signature, added to the prompt in words.")
    fade_in: Fade = Field(0.0, description="Seconds over which the audio fades in.")
    fade_out: Fade = Field(0.0, description="Seconds over which the audio fades out.")

    @property
    def parts(self) -> tuple[Segment, ...]:
        """The segments; without segments, one part for all of the audio."""
        assert self.prompt is not None
        return (Segment(self.prompt, self.duration, self.negative_prompt),)

    @property
    def seconds(self) -> float:
        """The duration of all of the audio."""
        return math.fsum(part.duration_seconds for part in self.parts)


class FileFields(RequestSchema):
    """What only requests for files have, because it needs the whole audio."""

    loudness: float | None = Field(
        None,
        ge=MIN_LOUDNESS_LUFS,
        le=MAX_LOUDNESS_LUFS,
        description="Integrated loudness of the audio in LUFS (EBU R 128), with a true peak of at most "
        f"{MAX_TRUE_PEAK_DBTP:g} dBTP; as generated when omitted.",
    )
    trim_silence: bool = Field(
        False, description=f"Whether to remove silence (below {SILENCE_DBFS:g} dBFS) from the start and the end."
    )
    analysis: bool = Field(
        False, description="Whether to measure loudness, peaks, silence, tempo and key of the audio."
    )
    loop: bool = Field(
        False,
        description="Whether to cut the audio so that it repeats without a gap. Needs `bpm` and `bars`, which replace "
        "`duration`. WAV, FLAC and Ogg Vorbis only.",
    )
    bars: Whole | None = Field(
        None, ge=1, le=MAX_BARS, description="Length of the loop; `time_signature`, or 4/4, gives the beats of a bar."
    )
    candidates: Whole = Field(
        DEFAULT_CANDIDATES,
        ge=1,
        le=MAX_CANDIDATES,
        description="Number of clips to generate for a loop. The clip with the smoothest seam is returned.",
    )
    stems: bool = Field(False, description="Whether to also return drums, bass, other and vocals as further files.")


class TextFields(GenerationFields):
    """What all text-to-music requests have in common."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["prompt"], "properties": {"segments": False, "performance": False}},
                {
                    "required": ["segments"],
                    "properties": {"prompt": False, "duration": False, "performance": False},
                },
                {"required": ["performance"], "properties": dict.fromkeys(PERFORMED, False)},
            ]
        }
    )

    EXAMPLES: ClassVar[Mapping[str, Mapping[str, Any]]] = {"demo": DEMO_EXAMPLE, "MP3": MP3_EXAMPLE}

    segments: Annotated[list[SegmentFields], Field(min_length=1, max_length=MAX_SEGMENTS)] | None = Field(
        None,
        description="Parts with prompts of their own, in place of `prompt` and `duration`.",
        json_schema_extra=not_null,
    )
    continue_from: ContinueFromFields | None = Field(
        None,
        description="Audio of yours to continue. `duration` is then that of the new audio.",
        json_schema_extra=not_null,
    )
    performance: EitherPerformance | None = Field(
        None,
        description="The performance of a live session, or its ID, in place of all controls.",
        json_schema_extra=either_not_null,
    )

    @property
    def parts(self) -> tuple[Segment, ...]:
        if self.segments is None:
            return super().parts
        return tuple(
            Segment(segment.prompt, segment.duration, segment.negative_prompt or self.negative_prompt)
            for segment in self.segments
        )

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> dict[str, str]:
        if given.get("performance") is not None:
            return {name: "cannot be combined with performance" for name in PERFORMED if name in given}
        if "continue_from" in given and given["continue_from"] is None:
            return {"continue_from": "must be an object"}
        if "segments" not in given:
            return {} if given.get("prompt") is not None else {"prompt": "is required"}
        if given["segments"] is None:
            return {"segments": "must be a list"}
        return {name: "cannot be combined with segments" for name in ("prompt", "duration") if name in given}


class StreamRequest(TextFields):
    """A text-to-music request whose audio is sent while it is generated."""

    n: Annotated[Whole, AfterValidator(_one), WithJsonSchema({"type": "integer", "const": 1})] = Field(
        1, description="Streams have one variation."
    )

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> dict[str, str]:
        needs_all = {name: NEEDS_WHOLE_AUDIO for name in FileFields.model_fields if name in given}
        return super().conflicts(given) | needs_all


class SocketRequest(StreamRequest):
    """The request of a WebSocket, which can also store what it streams."""

    EXAMPLES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    file_format: OutputFormat | None = Field(None, description="Also store the audio as a file in this format.")


class ReturnFields(RequestSchema):
    return_type: Literal["url", "base64"] = Field(
        "url", description="`url` returns a link to the audio file, `base64` the file itself."
    )


class GenerateRequest(ReturnFields, FileFields, TextFields):
    """A text-to-music request."""

    LONGEST = MAX_DURATION_SECONDS
    EXAMPLES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": DEMO_EXAMPLE,
        "audio in the response": MP3_EXAMPLE | {"return_type": "base64"},
        "every field": {"prompt": "bossa nova guitar", "model_size": "small", "duration": 5.0, "seed": 1}
        | {"temperature": 1.0, "top_k": 250, "top_p": 0.0, "cfg_coef": 3.0}
        | {"output_format": "wav", "return_type": "url"},
    }

    duration: Duration = Field(5.0, description="Duration of the audio in seconds.")
