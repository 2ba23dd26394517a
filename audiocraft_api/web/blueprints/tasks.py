"""Tasks: generations that no client waits for. Submit, look up, list, cancel."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from audiocraft_api.web.admission import admitted, admitted_text
from audiocraft_api.web.auth import caller
from audiocraft_api.web.continuing import continued_from
from audiocraft_api.web.melody_upload import with_melody
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.request_headers import IDEMPOTENCY_KEY, parse_idempotency_key
from audiocraft_api.web.responses import check_audio_kept, current_task_json, task_accepted_response
from audiocraft_api.web.schemas.responses import TaskErrorResponse
from audiocraft_api.web.schemas.tasks import (
    TASK_RESPONSES,
    MelodyTaskRequest,
    PageQuery,
    TaskAcceptedResponse,
    TaskRequest,
    TasksResponse,
)
from audiocraft_api.web.services import services
from audiocraft_api.web.task_submission import submit_task

LOCATION = {"Location": "Path of the task."}
TASK_ID = {"task_id": "ID of the task: `task_id` of the response that accepted it."}

blueprint = Blueprint("tasks", __name__)


@blueprint.post("/generate-async")
@Operation(
    summary="Submit a task that generates music from text",
    tag="tasks",
    access=Access.GENERATE,
    responses={202: (TaskAcceptedResponse,)},
    description="The task is stored durably before the server responds, and reaches exactly one final state.",
    json=TaskRequest,
    headers=LOCATION,
    request_headers=IDEMPOTENCY_KEY,
    errors=(404, 410, 422),
)
def generate_async(fields: TaskRequest) -> Response:
    with admitted_text(fields, parse_idempotency_key()) as command:
        return task_accepted_response(submit_task(continued_from(command, fields), fields.webhook_url))


@blueprint.post("/generate-with-melody-async")
@Operation(
    summary="Submit a task that generates music from text and a melody",
    tag="tasks",
    access=Access.GENERATE,
    responses={202: (TaskAcceptedResponse,)},
    description="The task and its melody are stored durably before the server responds.",
    form=MelodyTaskRequest,
    headers=LOCATION,
    request_headers=IDEMPOTENCY_KEY,
    errors=(422,),
)
def generate_with_melody_async(fields: MelodyTaskRequest) -> Response:
    spec = services().catalog.melody_checkpoint(fields.model_size)
    with admitted(fields, spec, parse_idempotency_key()) as command:
        with services().request_slots.acquire():  # while the upload waits for a decoder
            command = with_melody(command, fields)
        return task_accepted_response(submit_task(command, fields.webhook_url))


@blueprint.get("/tasks/<task_id>")
@Operation(
    summary="Get a task",
    tag="tasks",
    access=Access.READ,
    responses={200: TASK_RESPONSES},
    description="Status 410 means that the task was completed but its audio is no longer stored. Errors that polling "
    "again would not change have the `status` `failed`.",
    parameters=TASK_ID,
    errors=(400, 410),
    error_schemas=dict.fromkeys((400, 401, 403, 404, 410), TaskErrorResponse),
)
def task(task_id: str) -> dict[str, Any]:
    found = services().tasks.service.get(task_id, caller().owner)
    check_audio_kept(found)
    return current_task_json(found)


@blueprint.delete("/tasks/<task_id>")
@Operation(
    summary="Cancel a task",
    tag="tasks",
    access=Access.GENERATE,
    responses={200: TASK_RESPONSES, 202: TASK_RESPONSES},
    description="A queued task is canceled at once (200), a running task after its current step (202). A task in a "
    "final state does not change and is returned as it is (200), so that canceling twice is safe.",
    parameters=TASK_ID,
)
def cancel_task(task_id: str) -> Response:
    found = services().tasks.service.cancel(task_id, caller().owner)
    response = jsonify(current_task_json(found))
    response.status_code = 200 if found.is_final else 202
    return response


@blueprint.get("/tasks")
@Operation(
    summary="List tasks, newest first",
    tag="tasks",
    access=Access.READ,
    responses={200: (TasksResponse,)},
    query=PageQuery,
)
def list_tasks(query: PageQuery) -> dict[str, Any]:
    before = None if query.cursor is None else int(query.cursor)
    page = services().tasks.service.page(caller().owner, before=before, limit=query.limit + 1)
    has_more = len(page) > query.limit
    page = page[: query.limit]
    tasks = [current_task_json(found) for found in page]
    return {"tasks": tasks, "next_cursor": str(page[-1].number) if has_more else None}
