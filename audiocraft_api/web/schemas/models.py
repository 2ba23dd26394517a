"""The schemas of models, of their controls and of how they are loaded and unloaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audiocraft_api.core.load_progress import LoadPhase
from audiocraft_api.generation.model_control import ControlState
from audiocraft_api.model.catalog import ModelKind
from audiocraft_api.web.schemas.base import RequestSchema, ResponseSchema


class UnloadQuery(RequestSchema):
    """How to unload a model."""

    when_busy: Literal["wait", "refuse"] = Field(
        "wait",
        description="What happens while requests use the model. `wait`: it is unloaded when they have ended, also "
        "those that arrive until then. `refuse`: the response is 409.",
    )


class DurationControl(ResponseSchema):
    """Durations in seconds."""

    minimum: float
    maximum: float = Field(description="Longest duration of a task or a stream.")
    synchronous_maximum: float = Field(description="Longest duration of `/generate` and `/generate-with-melody`.")


class ExtendStrideControl(ResponseSchema):
    """Seconds of new audio in each window of audio that is longer than one window."""

    minimum: float
    exclusive_maximum: float = Field(description="Length of a window in seconds.")
    default: float


class NegativePromptControl(ResponseSchema):
    """A description of what the music should not sound like."""

    max_characters: int


class SegmentsControl(ResponseSchema):
    """Parts with prompts of their own. Requests with an uploaded melody have no segments."""

    maximum: int = Field(description="Most segments of a request.")
    minimum_duration: float = Field(description="Shortest segment in seconds.")
    changes_at: Literal["frame", "window"] = Field(
        description="`frame`: the prompt changes where the segment begins. `window`: it changes at the next window."
    )


class VariationsControl(ResponseSchema):
    """Variations of one request. Streams have one."""

    minimum: int
    maximum: int
    maximum_total_duration: float = Field(description="Seconds of audio that all variations together may have.")


class ContinuationControl(ResponseSchema):
    """Continuing a recording, in seconds."""

    minimum: float = Field(description="Shortest part that can be continued.")
    exclusive_maximum: float = Field(description="The part that is continued is shorter than this.")
    melody: bool = Field(description="Whether a continuation may follow a melody.")


class BpmControl(ResponseSchema):
    """Tempo in beats per minute: that of `notes`, and a wish, which is worded into the prompt."""

    minimum: int
    maximum: int


class NotesControl(ResponseSchema):
    """A melody of notes, as text or as a MIDI file."""

    maximum: int = Field(description="Most notes.")
    maximum_duration: float = Field(description="Longest melody in seconds.")
    default_bpm: int = Field(description="`bpm` of notes when omitted.")


class KeyControl(ResponseSchema):
    """Key: a wish, which is worded into the prompt."""

    pattern: str = Field(description="Regular expression that keys match.")


class TimeSignatureControl(ResponseSchema):
    """Time signature: a wish, which is worded into the prompt."""

    values: list[str]


class LoudnessControl(ResponseSchema):
    """Integrated loudness in LUFS. Streams keep the loudness that was generated."""

    minimum: float
    maximum: float
    maximum_true_peak: float = Field(description="Highest true peak in dBTP.")


class FadeControl(ResponseSchema):
    """A fade in seconds."""

    maximum: float = Field(description="Longest fade. Both fades together are at most as long as the audio.")


class TrimSilenceControl(ResponseSchema):
    """Removing silence from the start and the end. Streams keep it."""

    threshold: float = Field(description="Level in dBFS below which audio is silence.")


class LoopControl(ResponseSchema):
    """Clips that repeat without a gap. Streams and continuations have none."""

    minimum_bars: int
    maximum_bars: int
    maximum_candidates: int
    formats: list[str] = Field(description="Values of `output_format`.")


class StemsControl(ResponseSchema):
    """Separating the audio into stems. Streams have none."""

    names: list[str]


class LiveControl(ResponseSchema):
    """Live sessions and performances."""

    max_prompts: int = Field(description="Most prompts that are blended.")
    max_transition: float = Field(description="Longest transition in seconds.")
    lead: float = Field(description="Seconds that are generated ahead of playback, at most.")
    max_duration: float = Field(description="Longest session in seconds.")


class ControlsResponse(ResponseSchema):
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


class LoadProgressResponse(ResponseSchema):
    """What the load of a model does now."""

    phase: LoadPhase = Field(
        description="`waiting` for its turn, `downloading` from the hub, `reading` files, or `preparing` for decoding."
    )
    repository: str | None = Field(description="Repository of the hub that is being downloaded.")
    downloaded_bytes: int | None = Field(description="Of this repository.")
    total_bytes: int | None = Field(description="Of this repository; may grow at the beginning.")


class ModelStateResponse(ResponseSchema):
    """Whether a model is in the memory of this process."""

    name: str
    state: ControlState = Field(
        description="`unloading`: the model is unloaded once no request uses it. `failed`: the last load failed; the "
        "next request for the model tries again."
    )
    error: str | None = Field(description="Why the last load failed.")
    progress: LoadProgressResponse | None = Field(description="Of a load.")


class ModelResponse(ResponseSchema):
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


class ModelsResponse(ResponseSchema):
    models: list[ModelResponse]
