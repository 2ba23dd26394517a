"""What requests for tasks and answers about them look like."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from audiocraft_api.web.schemas import MelodyFields, RecipeResponse, StreamRequest

MAX_PAGE = 200
MAX_CURSOR = 2**63 - 1
MAX_WEBHOOK_URL_CHARACTERS = 2000


class TaskRequest(StreamRequest):
    """A text-to-music request that is answered with a task."""

    webhook_url: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_WEBHOOK_URL_CHARACTERS,
        description="An http or https address that is told the task's final state, signed, where the server does that.",
    )


class MelodyTaskRequest(MelodyFields, TaskRequest):
    """A request that follows an uploaded tune and is answered with a task; a form, numbers as text."""


class PageQuery(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="Tasks of a page.")
    cursor: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")] | None = Field(
        None, description="`next_cursor` of the page before; left out, the page begins with the newest task."
    )


class _TaskResponse(BaseModel):
    model_config = ConfigDict(frozen=True)

    task_id: str
    state: str = Field(description="`queued`, `processing`, `completed`, `failed` or `canceled`.")
    model: str = Field(description="Public name of the checkpoint.")
    seed: int = Field(description="Of every attempt at the task.")
    attempts: int = Field(description="How often the task was begun.")
    created_at: datetime
    started_at: datetime | None = Field(description="When the last attempt began.")
    finished_at: datetime | None


class TaskWorkingResponse(_TaskResponse):
    """A task that waits or runs."""

    status: Literal["processing"] = "processing"
    current: int = Field(description="Frames done.")
    total: int = Field(description="Frames to do; 0 until the engine has begun.")
    queue_position: int | None = Field(
        description="About how many tasks come up to this one; an estimate, since keys are served in turn. Null when it does not wait."
    )
    eta_seconds: float | None = Field(description="Seconds to the end, estimated from measured speed, where known.")
    cancel_requested: bool


class TaskResult(BaseModel):
    """What a completed task has made."""

    success: Literal[True]
    filename: str
    generation_time: float = Field(description="Seconds that the generation took.")
    format: str
    sample_rate: int = Field(description="Hz.")
    seed: int
    duration: float = Field(description="Seconds of audio in the file.")
    model: str
    revision: str
    cached: bool = Field(False, description="Whether the audio was there already, made for an equal request.")
    recipe: RecipeResponse | None = Field(None, description="How it was made; null only for tasks of an older release.")


class TaskCompletedResponse(_TaskResponse):
    """A task that has made its audio."""

    status: Literal["completed"] = "completed"
    result: TaskResult
    audio_url: str = Field(description="Path of the file on this server.")


class TaskFailedResponse(_TaskResponse):
    """A task that has come to nothing."""

    status: Literal["failed"] = "failed"
    error: str = Field(description="One sentence to act on.")
    code: str = Field(description="The kind of error, for programs.")


class TaskCanceledResponse(_TaskResponse):
    """A task that was canceled."""

    status: Literal["canceled"] = "canceled"


TASK_RESPONSES = (TaskWorkingResponse, TaskCompletedResponse, TaskFailedResponse, TaskCanceledResponse)


class AcceptedResponse(BaseModel):
    """A task was accepted."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    status: str = Field(description="`processing`; for a repeated `Idempotency-Key` what the task has become.")
    seed: int = Field(description="Send it again for the same audio.")
    events_url: str = Field(description="Path of the task's server-sent events.")
    request_id: str


class TasksResponse(BaseModel):
    """A page of tasks, newest first."""

    model_config = ConfigDict(frozen=True)

    tasks: list[TaskWorkingResponse | TaskCompletedResponse | TaskFailedResponse | TaskCanceledResponse]
    next_cursor: str | None = Field(description="For the next page; null on the last one.")
