"""What requests for tasks and answers about them look like."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from audiocraft_api.tasks.view import (
    TaskCanceledResponse,
    TaskCompletedResponse,
    TaskFailedResponse,
    TaskResponse,
    TaskWorkingResponse,
)
from audiocraft_api.web.schemas import MelodyFields, StreamRequest

MAX_PAGE = 200
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

    tasks: list[TaskResponse]
    next_cursor: str | None = Field(description="For the next page; null on the last one.")
