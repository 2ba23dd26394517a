"""The schemas of tasks: what creates them, and how they are listed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from audiocraft_api.net.outbound import MAX_URL_CHARACTERS
from audiocraft_api.tasks.view import (
    TaskCanceledResponse,
    TaskCompletedResponse,
    TaskFailedResponse,
    TaskResponse,
    TaskWorkingResponse,
)
from audiocraft_api.web.schemas.base import RequestSchema, ResponseSchema
from audiocraft_api.web.schemas.forms import ContinuationFields, MelodyFields
from audiocraft_api.web.schemas.generation import FileFields, TextFields

MAX_PAGE = 200


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


class TaskAcceptedResponse(ResponseSchema):
    """A task was accepted."""

    task_id: str
    status: str = Field(
        description="`processing`; for a repeated `Idempotency-Key`, the current status of the existing task."
    )
    seed: int = Field(description="Send this seed to generate the same audio again.")
    events_url: str = Field(description="Path of the task's server-sent events.")
    request_id: str


TASK_RESPONSES = (TaskWorkingResponse, TaskCompletedResponse, TaskFailedResponse, TaskCanceledResponse)


class TasksResponse(ResponseSchema):
    """A page of tasks, newest first."""

    tasks: list[TaskResponse]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last page.")
