"""The schemas of all requests and responses. They validate, and the OpenAPI document is generated from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from werkzeug.datastructures import FileStorage

from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.audio.notes import DEFAULT_BPM, MAX_NOTES_CHARACTERS, NOTES_PATTERN, parse_notes
from audiocraft_api.audio.upload import ACCEPTED_FORMATS
from audiocraft_api.core.constants import (
    CODEBOOK_SIZE,
    DEFAULT_CANDIDATES,
    DEFAULT_CFG_COEF,
    DEFAULT_EXTEND_STRIDE_SECONDS,
    DEFAULT_TOP_K,
    FRAME_RATE,
    MAX_BARS,
    MAX_BPM,
    MAX_CANDIDATES,
    MAX_CFG_COEF,
    MAX_DURATION_SECONDS,
    MAX_FADE_SECONDS,
    MAX_LIVE_CHANGES,
    MAX_LIVE_SECONDS,
    MAX_LONG_DURATION_SECONDS,
    MAX_LOUDNESS_LUFS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_SEGMENTS,
    MAX_TEMPERATURE,
    MAX_TRANSITION_SECONDS,
    MAX_TRUE_PEAK_DBTP,
    MAX_VARIATIONS,
    MIN_BPM,
    MIN_DURATION_SECONDS,
    MIN_EXTEND_STRIDE_SECONDS,
    MIN_LOUDNESS_LUFS,
    MIN_SEGMENT_SECONDS,
    MIN_TEMPERATURE,
    SILENCE_DBFS,
    WINDOW_SECONDS,
)
from audiocraft_api.core.load_progress import LoadPhase
from audiocraft_api.core.params import Segment
from audiocraft_api.core.performance import MAX_LIVE_PROMPTS
from audiocraft_api.generation.continuation import Part
from audiocraft_api.generation.model_control import ControlState
from audiocraft_api.model.catalog import ModelKind
from audiocraft_api.net.outbound import MAX_URL_CHARACTERS
from audiocraft_api.storage.base import LINK
from audiocraft_api.tasks.view import (
    VARIATIONS,
    AudioFields,
    FailedVariationResponse,
    TaskCanceledResponse,
    TaskCompletedResponse,
    TaskFailedResponse,
    TaskResponse,
    TaskWorkingResponse,
    is_unused,
)

MAX_PAGE = 200
KEY = re.compile(r"^[A-G](#|b)? (major|minor)$")
NEEDS_WHOLE_AUDIO = "needs the whole audio, which a stream does not have; use a route that returns files"

# Other formats add samples at the start and the end, so that a loop would have a gap.
LOOP_FORMATS = ("wav", "wav24", "wav32f", "flac", "ogg")

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


def _not_null(schema: dict[str, Any]) -> None:
    """Document a field that may be left out, but not be null."""
    schema.pop("default")
    schema |= schema.pop("anyOf")[0]


def _one(number: int) -> int:
    if number != 1:
        raise ValueError("must be 1 for a stream; send variations to a route that returns files")
    return number


def _either_not_null(schema: dict[str, Any]) -> None:
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

MELODY_FILES = f"a {ACCEPTED_FORMATS} file, or a MIDI file, of which the highest notes are followed"
UploadedFile = Annotated[FileStorage, WithJsonSchema({"type": "string", "format": "binary"})]

PART_START = (
    "Where the part to continue starts, in seconds. By default, the part is as long as the model's window permits."
)
PART_END = "Where the part to continue ends and the new audio begins, in seconds; by default, where the audio ends."
INCLUDE_INPUT = "Whether the result begins with the part that is continued, or with the new audio."

DEMO_EXAMPLE = {"prompt": "warm analog synth arpeggio, 100 bpm", "model_size": "demo", "duration": 2, "seed": 7}
MP3_EXAMPLE = {"prompt": "solo cello", "model_size": "demo", "duration": 1, "output_format": "mp3"}


class RequestSchema(BaseModel):
    """The base of what requests contain. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    EXAMPLES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by title, for OpenAPI

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> dict[str, str]:  # noqa: ARG003
        """Return the fields that are missing or do not go together, with what is wrong with each."""
        return {}


MAX_WEIGHT = 100.0


def _not_zero(weight: float) -> float:
    if abs(weight) < 1e-6:
        raise ValueError("must not be 0; leave the prompt out")
    return weight


def _playable(prompts: list[LivePromptFields]) -> list[LivePromptFields]:
    if all(prompt.weight < 0 for prompt in prompts):
        raise ValueError("must contain a prompt with a positive weight")
    if len({prompt.text for prompt in prompts}) < len(prompts):
        raise ValueError("must not contain the same text twice")
    return prompts


class LivePromptFields(RequestSchema):
    """A text with a weight. Weights are relative to each other; the music is led away from negative ones."""

    text: Prompt
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT), AfterValidator(_not_zero)] = 1.0


Prompts = Annotated[list[LivePromptFields], Field(min_length=1, max_length=MAX_LIVE_PROMPTS), AfterValidator(_playable)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
TopK = Annotated[int, Field(ge=0, le=CODEBOOK_SIZE), BeforeValidator(_whole)]
TopP = Annotated[float, Field(ge=0, le=1)]
CfgCoef = Annotated[float, Field(ge=0, le=MAX_CFG_COEF)]
Transition = Annotated[
    float, Field(ge=0, le=MAX_TRANSITION_SECONDS, description="Seconds that a change of prompts takes.")
]


class PerformanceChangeFields(RequestSchema):
    """The controls from a frame on. Frames are counted from 0, 50 per second."""

    frame: Whole = Field(ge=0, le=MAX_LIVE_SECONDS * FRAME_RATE)
    prompts: Prompts
    temperature: Temperature = 1.0
    top_k: TopK = DEFAULT_TOP_K
    top_p: TopP = 0.0
    cfg_coef: CfgCoef = DEFAULT_CFG_COEF
    transition: Transition = 0.0
    reset_context: bool = False


def _ascending(changes: list[PerformanceChangeFields]) -> list[PerformanceChangeFields]:
    frames = [change.frame for change in changes]
    if frames[0] != 0 or any(later <= earlier for earlier, later in pairwise(frames)):
        raise ValueError("must begin at frame 0 and have ascending frames")
    return changes


class PerformanceFields(RequestSchema):
    """A performance: what `GET /performances/<id>` returns. Send it to generate the same audio, edited if you like."""

    frames: Whole = Field(ge=1, le=MAX_LIVE_SECONDS * FRAME_RATE, description="Length in frames, 50 per second.")
    changes: Annotated[
        list[PerformanceChangeFields], Field(min_length=1, max_length=MAX_LIVE_CHANGES), AfterValidator(_ascending)
    ]
    model: str = Field(max_length=64)
    seed: Seed
    extend_stride: ExtendStride | None = None
    revision: str | None = Field(None, max_length=256, description="Of the model. Not read.")
    precision: str | None = Field(None, max_length=16, description="Of the engine. Not read.")
    service_version: str | None = Field(None, max_length=64, description="Not read.")
    created: str | None = Field(None, max_length=64, description="Not read.")


PerformanceId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")]
# Names the two types in the locations of errors; `parsing` leaves the names out of its sentences.
PERFORMANCE_TAGS = ("<object>", "<id>")
EitherPerformance = Annotated[
    Annotated[PerformanceFields, Tag(PERFORMANCE_TAGS[0])] | Annotated[PerformanceId, Tag(PERFORMANCE_TAGS[1])],
    Discriminator(
        lambda given: PERFORMANCE_TAGS[isinstance(given, str)] if isinstance(given, dict | str) else None,
        custom_error_type="performance",
        custom_error_message="Input should be an object or the ID of a performance",
    ),
]

# What a performance contains, so that a request for it must not.
PERFORMED = (
    *("prompt", "segments", "duration", "model_size", "seed", "extend_stride", "negative_prompt"),
    *("temperature", "top_k", "top_p", "cfg_coef", "n", "continue_from", "bpm", "key", "time_signature"),
)


class SegmentFields(RequestSchema):
    """A part of the audio with a prompt of its own."""

    prompt: Prompt
    duration: float = Field(
        ge=MIN_SEGMENT_SECONDS, le=MAX_LONG_DURATION_SECONDS, description="Duration of the segment in seconds."
    )
    negative_prompt: Prompt | None = Field(
        None, description="What this segment should not sound like; the request's `negative_prompt` when omitted."
    )


class ContinueFromFields(RequestSchema):
    """Audio of the caller to continue, named by its task or its link."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["task_id"], "properties": {"audio_url": False}},
                {"required": ["audio_url"], "properties": {"task_id": False}},
            ]
        }
    )

    task_id: str | None = Field(None, max_length=64, description="ID of a completed task.", json_schema_extra=_not_null)
    audio_url: Annotated[str, StringConstraints(pattern=rf"^/audio/{LINK.pattern}$")] | None = Field(
        None, description="`audio_url` of an earlier response.", json_schema_extra=_not_null
    )
    start: float | None = Field(None, ge=0, description=PART_START)
    end: float | None = Field(None, gt=0, description=PART_END)
    include_input: bool = Field(True, description=INCLUDE_INPUT)

    @model_validator(mode="before")
    @classmethod
    def _names_one(cls, given: Any) -> Any:
        if isinstance(given, dict) and [name for name in ("task_id", "audio_url") if name in given] not in (
            ["task_id"],
            ["audio_url"],
        ):
            raise ValueError("must have either task_id or audio_url")
        return given

    @field_validator("task_id", "audio_url")
    @classmethod
    def _is_text(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("must be a string")
        return value

    @property
    def part(self) -> Part:
        return Part(self.start, self.end)


class GenerationFields(RequestSchema):
    """What all requests for audio have in common."""

    LONGEST: ClassVar[float] = MAX_LONG_DURATION_SECONDS

    prompt: Prompt | None = Field(None, json_schema_extra=_not_null)
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

    EXAMPLES = {"demo": DEMO_EXAMPLE, "MP3": MP3_EXAMPLE}

    segments: Annotated[list[SegmentFields], Field(min_length=1, max_length=MAX_SEGMENTS)] | None = Field(
        None,
        description="Parts with prompts of their own, in place of `prompt` and `duration`.",
        json_schema_extra=_not_null,
    )
    continue_from: ContinueFromFields | None = Field(
        None,
        description="Audio of yours to continue. `duration` is then that of the new audio.",
        json_schema_extra=_not_null,
    )
    performance: EitherPerformance | None = Field(
        None,
        description="The performance of a live session, or its ID, in place of all controls.",
        json_schema_extra=_either_not_null,
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

    EXAMPLES = {}

    file_format: OutputFormat | None = Field(None, description="Also store the audio as a file in this format.")


class _ReturnFields(RequestSchema):
    return_type: Literal["url", "base64"] = Field(
        "url", description="`url` returns a link to the audio file, `base64` the file itself."
    )


class GenerateRequest(_ReturnFields, FileFields, TextFields):
    """A text-to-music request."""

    LONGEST = MAX_DURATION_SECONDS
    EXAMPLES = {
        "demo": DEMO_EXAMPLE,
        "audio in the response": MP3_EXAMPLE | {"return_type": "base64"},
        "every field": {"prompt": "bossa nova guitar", "model_size": "small", "duration": 5.0, "seed": 1}
        | {"temperature": 1.0, "top_k": 250, "top_p": 0.0, "cfg_coef": 3.0}
        | {"output_format": "wav", "return_type": "url"},
    }

    duration: Duration = Field(5.0, description="Duration of the audio in seconds.")


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
        None, description=f"A melody to follow: {MELODY_FILES}.", json_schema_extra=_not_null
    )
    notes: Notes | None = Field(
        None,
        description="A melody to follow, in place of a file: pitches or `-` for a rest, each with its length in beats, "
        "such as `C4:1 E4:1/2 -:0.5 Bb3:2`. A beat lasts 60 / `bpm` seconds.",
        json_schema_extra=_not_null,
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


class MelodyRequest(_ReturnFields, MelodyFields):
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
        json_schema_extra=_not_null,
    )
    end: float | None = Field(
        None,
        gt=0,
        description=PART_END,
        json_schema_extra=_not_null,
    )
    include_input: bool = Field(True, description=INCLUDE_INPUT)

    @property
    def part(self) -> Part:
        return Part(self.start, self.end)


class ContinuationRequest(_ReturnFields, ContinuationFields):
    """A multipart form with a recording to continue. Numbers are sent as text."""

    LONGEST = MAX_DURATION_SECONDS

    duration: Duration = Field(5.0, description="Duration of the new audio in seconds.")


class _WebhookFields(RequestSchema):
    webhook_url: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_URL_CHARACTERS,
        description="HTTP or HTTPS URL that receives the task's final state in a signed request, "
        "on servers with webhooks enabled.",
    )


class TaskRequest(_WebhookFields, FileFields, TextFields):
    """A text-to-music request that creates a task."""


class MelodyTaskRequest(_WebhookFields, MelodyFields):
    """A multipart form with a melody, a file or notes, that creates a task. Numbers are sent as text."""


class ContinuationTaskRequest(_WebhookFields, ContinuationFields):
    """A multipart form with a recording to continue that creates a task. Numbers are sent as text."""


class PageQuery(RequestSchema):
    """One page of a list."""

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="Maximum number of tasks per page.")
    cursor: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")] | None = Field(
        None, description="`next_cursor` of the previous page; omit it to start with the newest task."
    )


class UnloadQuery(RequestSchema):
    """How to unload a model."""

    when_busy: Literal["wait", "refuse"] = Field(
        "wait",
        description="What happens while requests use the model. `wait`: it is unloaded when they have ended, also "
        "those that arrive until then. `refuse`: the response is 409.",
    )


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class UrlVariation(AudioFields):
    """One of several variations, for `return_type` `url`."""

    audio_url: str = Field(description="Path of the audio file on this server.")


class Base64Variation(AudioFields):
    """One of several variations, for `return_type` `base64`."""

    audio: str = Field(description="The audio file in standard base64.")


class _Success(_Response):
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


class TaskAcceptedResponse(_Response):
    """A task was accepted."""

    task_id: str
    status: str = Field(
        description="`processing`; for a repeated `Idempotency-Key`, the current status of the existing task."
    )
    seed: int = Field(description="Send this seed to generate the same audio again.")
    events_url: str = Field(description="Path of the task's server-sent events.")
    request_id: str


TASK_RESPONSES = (TaskWorkingResponse, TaskCompletedResponse, TaskFailedResponse, TaskCanceledResponse)


class TasksResponse(_Response):
    """A page of tasks, newest first."""

    tasks: list[TaskResponse]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last page.")


class QueueResponse(_Response):
    waiting: int = Field(description="Requests waiting for the engine, plus queued tasks.")
    running: int


class HealthResponse(_Response):
    status: Literal["healthy"] = "healthy"
    version: str
    models_loaded: list[str] = Field(description="Names of the models in memory.")
    device: str = Field(description="Device that models run on; `auto` until the first model is loaded.")
    queue: QueueResponse


class ReadyResponse(_Response):
    status: Literal["ready"] = "ready"


class DurationControl(_Response):
    """Durations in seconds."""

    minimum: float
    maximum: float = Field(description="Longest duration of a task or a stream.")
    synchronous_maximum: float = Field(description="Longest duration of `/generate` and `/generate-with-melody`.")


class ExtendStrideControl(_Response):
    """Seconds of new audio in each window of audio that is longer than one window."""

    minimum: float
    exclusive_maximum: float = Field(description="Length of a window in seconds.")
    default: float


class NegativePromptControl(_Response):
    """A description of what the music should not sound like."""

    max_characters: int


class SegmentsControl(_Response):
    """Parts with prompts of their own. Requests with an uploaded melody have no segments."""

    maximum: int = Field(description="Most segments of a request.")
    minimum_duration: float = Field(description="Shortest segment in seconds.")
    changes_at: Literal["frame", "window"] = Field(
        description="`frame`: the prompt changes where the segment begins. `window`: it changes at the next window."
    )


class VariationsControl(_Response):
    """Variations of one request. Streams have one."""

    minimum: int
    maximum: int
    maximum_total_duration: float = Field(description="Seconds of audio that all variations together may have.")


class ContinuationControl(_Response):
    """Continuing a recording, in seconds."""

    minimum: float = Field(description="Shortest part that can be continued.")
    exclusive_maximum: float = Field(description="The part that is continued is shorter than this.")
    melody: bool = Field(description="Whether a continuation may follow a melody.")


class BpmControl(_Response):
    """Tempo in beats per minute: that of `notes`, and a wish, which is worded into the prompt."""

    minimum: int
    maximum: int


class NotesControl(_Response):
    """A melody of notes, as text or as a MIDI file."""

    maximum: int = Field(description="Most notes.")
    maximum_duration: float = Field(description="Longest melody in seconds.")
    default_bpm: int = Field(description="`bpm` of notes when omitted.")


class KeyControl(_Response):
    """Key: a wish, which is worded into the prompt."""

    pattern: str = Field(description="Regular expression that keys match.")


class TimeSignatureControl(_Response):
    """Time signature: a wish, which is worded into the prompt."""

    values: list[str]


class LoudnessControl(_Response):
    """Integrated loudness in LUFS. Streams keep the loudness that was generated."""

    minimum: float
    maximum: float
    maximum_true_peak: float = Field(description="Highest true peak in dBTP.")


class FadeControl(_Response):
    """A fade in seconds."""

    maximum: float = Field(description="Longest fade. Both fades together are at most as long as the audio.")


class TrimSilenceControl(_Response):
    """Removing silence from the start and the end. Streams keep it."""

    threshold: float = Field(description="Level in dBFS below which audio is silence.")


class LoopControl(_Response):
    """Clips that repeat without a gap. Streams and continuations have none."""

    minimum_bars: int
    maximum_bars: int
    maximum_candidates: int
    formats: list[str] = Field(description="Values of `output_format`.")


class StemsControl(_Response):
    """Separating the audio into stems. Streams have none."""

    names: list[str]


class LiveControl(_Response):
    """Live sessions and performances."""

    max_prompts: int = Field(description="Most prompts that are blended.")
    max_transition: float = Field(description="Longest transition in seconds.")
    lead: float = Field(description="Seconds that are generated ahead of playback, at most.")
    max_duration: float = Field(description="Longest session in seconds.")


class ControlsResponse(_Response):
    """The controls of a model and their limits."""

    duration: DurationControl
    extend_stride: ExtendStrideControl
    negative_prompt: NegativePromptControl
    segments: SegmentsControl
    n: VariationsControl
    continuation: ContinuationControl
    bpm: BpmControl | None = Field(description="Null for models of sound effects.")
    key: KeyControl | None = Field(description="Null for models of sound effects.")
    time_signature: TimeSignatureControl | None = Field(description="Null for models of sound effects.")
    loudness: LoudnessControl
    fade_in: FadeControl
    fade_out: FadeControl
    trim_silence: TrimSilenceControl
    loop: LoopControl | None = Field(description="Null for models of sound effects.")
    stems: StemsControl
    notes: NotesControl | None = Field(description="Null for models that cannot follow a melody.")
    live: LiveControl | None = Field(description="Null for models that cannot play live.")


class LoadProgressResponse(_Response):
    """What the load of a model does now."""

    phase: LoadPhase = Field(
        description="`waiting` for its turn, `downloading` from the hub, `reading` files, or `preparing` for decoding."
    )
    repository: str | None = Field(description="Repository of the hub that is being downloaded.")
    downloaded_bytes: int | None = Field(description="Of this repository.")
    total_bytes: int | None = Field(description="Of this repository; may grow at the beginning.")


class ModelStateResponse(_Response):
    """Whether a model is in the memory of this process."""

    name: str
    state: ControlState = Field(
        description="`unloading`: the model is unloaded once no request uses it. `failed`: the last load failed; the "
        "next request for the model tries again."
    )
    error: str | None = Field(description="Why the last load failed.")
    progress: LoadProgressResponse | None = Field(description="Of a load.")


class ModelResponse(_Response):
    name: str = Field(description="Value for `model_size`.")
    description: str
    checkpoint: str = Field(
        description="Hugging Face Hub ID, local directory, or `built-in` for a model that the server builds."
    )
    revision: str | None = Field(description="Pinned revision on the Hub, if any.")
    loaded_revision: str | None = Field(description="Revision of the checkpoint in memory, if the model is loaded.")
    sha256: str | None = Field(description="Pinned SHA-256 of `state_dict.bin`, if any.")
    codec_sha256: str | None = Field(description="Pinned SHA-256 of `compression_state_dict.bin`, if any.")
    kind: ModelKind = Field(description="What the model generates.")
    text: bool = Field(description="Whether the model generates audio from text alone.")
    melody: bool = Field(description="Whether the model follows a melody.")
    channels: int
    sample_rate: int = Field(description="Sample rate in Hz.")
    max_duration: float = Field(description="Longest duration of a synchronous request in seconds.")
    loaded: bool = Field(description="Whether the model is in memory.")
    state: ControlState = Field(
        description="Whether the model is in the memory of this process. `unloading`: it is unloaded once no request "
        "uses it. `failed`: the last load failed; the next request for the model tries again."
    )
    error: str | None = Field(description="Why the last load failed.")
    progress: LoadProgressResponse | None = Field(description="Of a load.")
    licence: str = Field(description="License of the weights.")
    commercial_use: bool = Field(description="Whether the license allows commercial use.")
    allowed: bool = Field(description="Whether this server allows the model.")
    controls: ControlsResponse = Field(description="The controls that requests for this model may use.")


class ModelsResponse(_Response):
    models: list[ModelResponse]


class ErrorResponse(_Response):
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
