"""A task as clients see it: the body of `GET /tasks/<id>`, of each server-sent event and of each webhook.

Owns the public fields of a task and their descriptions. Knows the store of audio files only for their links, and
nothing of Flask.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from audiocraft_api.storage.base import AudioStore, link_of
from audiocraft_api.tasks.service import TaskEstimate
from audiocraft_api.tasks.task import Task

VARIATIONS = "All variations in the order of their seeds, the first included; left out for an `n` of 1."


def is_unused(control: object) -> bool:
    """Return whether a field is left out of responses."""
    return control is None


class SegmentResponse(BaseModel):
    """A segment of a recipe."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    duration: float
    negative_prompt: str | None = Field(None, exclude_if=is_unused)


class ContinueFromResponse(BaseModel):
    """The audio on this server that was continued."""

    model_config = ConfigDict(frozen=True)

    audio_url: str
    start: float
    end: float
    include_input: bool


class PerformancePromptResponse(BaseModel):
    """A text with a weight."""

    model_config = ConfigDict(frozen=True)

    text: str
    weight: float


class PerformanceChangeResponse(BaseModel):
    """The controls of a performance from a frame on."""

    model_config = ConfigDict(frozen=True)

    frame: int
    prompts: list[PerformancePromptResponse]
    temperature: float
    top_k: int
    top_p: float
    cfg_coef: float
    transition: float = Field(description="Seconds that the change of prompts takes.")
    reset_context: bool


class RecipePerformanceResponse(BaseModel):
    """A performance in a recipe, which can be sent again."""

    model_config = ConfigDict(frozen=True)

    frames: int = Field(description="Length in frames, 50 per second.")
    changes: list[PerformanceChangeResponse]
    model: str
    seed: int
    extend_stride: float


class RecipeResponse(BaseModel):
    """Everything needed to make the same audio again: the request's fields, resolved, and the software versions."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    model: str = Field(description="Name of the model, as in `GET /models`.")
    revision: str = Field(description="Revision of the checkpoint.")
    duration: float = Field(description="Requested duration in seconds.")
    temperature: float
    top_k: int
    top_p: float
    cfg_coef: float
    seed: int
    melody: str | None = Field(description="SHA-256 of the decoded melody; null without an uploaded melody.")
    notes: str | None = Field(
        None, description="The melody as notes, at `bpm`; left out if there are none.", exclude_if=is_unused
    )
    extend_stride: float | None = Field(
        None,
        description="Seconds of new audio in each window; left out if it has no effect.",
        exclude_if=is_unused,
    )
    negative_prompt: str | None = Field(None, description="Left out if there is none.", exclude_if=is_unused)
    segments: list[SegmentResponse] | None = Field(
        None, description="In place of `prompt` and `duration`; left out if there are none.", exclude_if=is_unused
    )
    audio: str | None = Field(
        None,
        description="SHA-256 of the part of the recording that is continued; left out if there is none.",
        exclude_if=is_unused,
    )
    codes: str | None = Field(
        None,
        description="SHA-256 of that part's stored codes; left out if the part was encoded again.",
        exclude_if=is_unused,
    )
    start: float | None = Field(None, description="Start of that part in seconds.", exclude_if=is_unused)
    end: float | None = Field(None, description="End of that part in seconds.", exclude_if=is_unused)
    include_input: bool | None = Field(
        None, description="Whether the audio begins with that part.", exclude_if=is_unused
    )
    continue_from: ContinueFromResponse | None = Field(
        None, description="In place of the last three, for audio on this server.", exclude_if=is_unused
    )
    performance: RecipePerformanceResponse | None = Field(
        None, description="In place of all controls; left out if there is none.", exclude_if=is_unused
    )
    bpm: int | None = Field(None, description="Left out if unset.", exclude_if=is_unused)
    key: str | None = Field(None, description="Left out if unset.", exclude_if=is_unused)
    time_signature: str | None = Field(None, description="Left out if unset.", exclude_if=is_unused)
    wording: str | None = Field(
        None,
        description="What the model read after each prompt, from the last three; left out if there is nothing.",
        exclude_if=is_unused,
    )
    loudness: float | None = Field(None, description="Target in LUFS; left out if unset.", exclude_if=is_unused)
    fade_in: float | None = Field(None, description="Seconds; left out if there is none.", exclude_if=is_unused)
    fade_out: float | None = Field(None, description="Seconds; left out if there is none.", exclude_if=is_unused)
    trim_silence: bool | None = Field(None, description="Left out unless true.", exclude_if=is_unused)
    loop: bool | None = Field(None, description="Left out unless true.", exclude_if=is_unused)
    bars: int | None = Field(None, description="Of the loop.", exclude_if=is_unused)
    candidates: int | None = Field(None, description="Of the loop.", exclude_if=is_unused)
    stems: bool | None = Field(None, description="Left out unless true.", exclude_if=is_unused)
    separator: str | None = Field(
        None, description="What separated the stems, as `<repository>@<revision>`.", exclude_if=is_unused
    )
    output_format: str
    engine: str
    precision: str
    service_version: str
    created: str = Field(json_schema_extra={"format": "date-time"})


class AnalysisResponse(BaseModel):
    """What was measured in the audio, before encoding. Null stands for what the audio does not have."""

    model_config = ConfigDict(frozen=True)

    loudness_lufs: float | None = Field(description="Integrated loudness (EBU R 128); null for silence.")
    true_peak_dbtp: float | None = Field(description="True peak with fourfold oversampling; null for silence.")
    clipped_samples: int = Field(description="Samples of all channels that are at full scale.")
    leading_silence: float = Field(description="Seconds below -60 dBFS at the start.")
    trailing_silence: float = Field(description="Seconds below -60 dBFS at the end.")
    tempo_bpm: float | None = Field(description="Estimated tempo; null for audio without a pulse or under 3 seconds.")
    tempo_confidence: float | None = Field(description="0 to 1: how regular the onsets are at this tempo.")
    key: str | None = Field(description="Estimated key, such as `F# minor`; null for audio without notes.")
    key_confidence: float | None = Field(description="0 to 1: how well the notes fit the key.")


class LoopResponse(BaseModel):
    """How a loop was cut."""

    model_config = ConfigDict(frozen=True)

    candidate: int = Field(description="Number of the candidate that it was cut from.")
    tempo_bpm: float = Field(description="Measured tempo of that candidate.")
    stretch: float = Field(description="Factor by which the tempo was changed, 0.97 to 1.03; 1 if it was not.")
    start: float = Field(description="Where the loop starts in that candidate at the changed tempo, in seconds.")
    seam: float = Field(description="Largest change of the spectrum at the seam; 1 is the largest one at a beat.")


class StemsResponse(BaseModel):
    """The stems, which add up to the audio: paths of files on this server, or with base64 the files themselves."""

    model_config = ConfigDict(frozen=True)

    drums: str
    bass: str
    other: str
    vocals: str


class AudioFields(BaseModel):
    """The audio of one generation and how it was made."""

    model_config = ConfigDict(frozen=True)

    generation_time: float = Field(description="Seconds the generation took.")
    format: str
    sample_rate: int = Field(description="Sample rate in Hz.")
    duration: float = Field(description="Duration of the audio file in seconds.")
    seed: int = Field(description="Send this seed to generate the same audio again.")
    model: str = Field(description="Name of the model that generated the audio, as in `GET /models`.")
    revision: str = Field(description="Revision of the checkpoint.")
    cached: bool = Field(False, description="Whether the audio was reused from an earlier, identical request.")
    recipe: RecipeResponse | None = Field(
        None, description="How the audio was made; null only for tasks of an older release."
    )
    analysis: AnalysisResponse | None = Field(
        None, description="What was measured in the audio; left out unless requested.", exclude_if=is_unused
    )
    loop: LoopResponse | None = Field(
        None, description="How the loop was cut; left out unless requested.", exclude_if=is_unused
    )
    stems: StemsResponse | None = Field(None, description="Left out unless requested.", exclude_if=is_unused)


class FailedVariationResponse(BaseModel):
    """A variation that could not be made, while others of the same request were."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    error: str = Field(description="A sentence that says what went wrong and what to do.")
    code: str = Field(description="Machine-readable error code.")


class TaskVariation(AudioFields):
    """One of the variations of a completed task."""

    filename: str
    audio_url: str = Field(description="Path of the audio file on this server.")


class _SavedFields(BaseModel):
    """The fields that a result begins with."""

    success: Literal[True]
    filename: str


class TaskResult(AudioFields, _SavedFields):
    """The audio of a completed task. Of several variations, this is the first that did not fail."""

    variations: list[TaskVariation | FailedVariationResponse] | None = Field(
        None, description=VARIATIONS, exclude_if=is_unused
    )


class _TaskResponse(BaseModel):
    model_config = ConfigDict(frozen=True)

    task_id: str
    state: str = Field(description="`queued`, `processing`, `completed`, `failed` or `canceled`.")
    model: str = Field(description="Name of the model, as in `GET /models`.")
    seed: int = Field(description="Seed of the generation; every attempt uses the same one.")
    attempts: int = Field(description="How many times the task was started.")
    created_at: datetime
    started_at: datetime | None = Field(description="When the latest attempt started.")
    finished_at: datetime | None


class TaskWorkingResponse(_TaskResponse):
    """A task that is queued or running."""

    status: Literal["processing"] = "processing"
    current: int = Field(description="Frames generated so far; 50 frames are one second of audio.")
    total: int = Field(description="Frames to generate; 0 until the engine has started.")
    queue_position: int | None = Field(
        description="Approximate position in the queue, counting this task; API keys are served in turn. "
        "Null when the task is not queued."
    )
    eta_seconds: float | None = Field(
        description="Estimated seconds until the task finishes, from measured speed; null when unknown."
    )
    cancel_requested: bool


class TaskCompletedResponse(_TaskResponse):
    """A task whose audio is ready."""

    status: Literal["completed"] = "completed"
    result: TaskResult
    audio_url: str = Field(description="Path of the audio file on this server.")


class TaskFailedResponse(_TaskResponse):
    """A task that failed."""

    status: Literal["failed"] = "failed"
    error: str = Field(description="A sentence that says what went wrong and what to do.")
    code: str = Field(description="Machine-readable error code.")


class TaskCanceledResponse(_TaskResponse):
    """A task that was canceled."""

    status: Literal["canceled"] = "canceled"


TaskResponse: TypeAlias = TaskWorkingResponse | TaskCompletedResponse | TaskFailedResponse | TaskCanceledResponse


def view_task(task: Task, files: AudioStore, estimate: TaskEstimate | None = None) -> TaskResponse:
    """Return the public view of a task; without `estimate`, queue position and remaining time are null."""
    fields: dict[str, Any] = {
        "task_id": task.id,
        "state": task.state,
        "model": task.model,
        "seed": task.seed,
        "attempts": task.attempts,
        "created_at": _timestamp(task.created),
        "started_at": _timestamp(task.started),
        "finished_at": _timestamp(task.finished),
    }
    if task.state == "completed" and task.result is not None and task.filename is not None:
        audio_url = files.url_for(task.filename)
        result = _with_stems(task.result, files) | {"filename": link_of(task.filename)}
        if "variations" in result:
            result["variations"] = [_variation(part, files) for part in result["variations"]]
        return TaskCompletedResponse.model_validate(fields | {"result": result, "audio_url": audio_url})
    if task.state == "failed":
        return TaskFailedResponse(**fields, error=task.error or "", code=task.error_code or "")
    if task.state == "canceled":
        return TaskCanceledResponse(**fields)
    eta_seconds = estimate.eta_seconds if estimate else None
    return TaskWorkingResponse(
        **fields,
        current=task.num_frames_done,
        total=task.num_frames_total,
        queue_position=estimate.position if estimate else None,
        eta_seconds=None if eta_seconds is None else round(eta_seconds, 1),
        cancel_requested=task.cancel_requested,
    )


def task_json(task: Task, files: AudioStore, estimate: TaskEstimate | None = None) -> dict[str, Any]:
    """Return `view_task` as JSON values."""
    return view_task(task, files, estimate).model_dump(mode="json")


def _variation(part: dict[str, Any], files: AudioStore) -> dict[str, Any]:
    """Return a stored variation as clients see it."""
    if "filename" not in part:
        return part
    part = _with_stems(part, files)
    return part | {"filename": link_of(part["filename"]), "audio_url": files.url_for(part["filename"])}


def _with_stems(part: dict[str, Any], files: AudioStore) -> dict[str, Any]:
    """Return a part of a stored result with the links of its stems, if it has any."""
    if "stems" not in part:
        return part
    return part | {"stems": {name: files.url_for(filename) for name, filename in part["stems"].items()}}


def _timestamp(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
