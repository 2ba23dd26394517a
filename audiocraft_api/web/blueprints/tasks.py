"""Generations that nobody waits for: submit, look up, list, cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, BinaryIO, cast

from flask import Blueprint, Response, jsonify

from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.view import task_json
from audiocraft_api.web.admission import admitted
from audiocraft_api.web.auth import caller
from audiocraft_api.web.blueprints.melody import NO_FILE
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.parsing import parse_form, parse_json, parse_query
from audiocraft_api.web.services import services
from audiocraft_api.web.task_responses import (
    IDEMPOTENCY_HEADER,
    accepted,
    check_audio,
    idempotency_key,
    submit_task,
)
from audiocraft_api.web.task_schemas import (
    TASK_RESPONSES,
    AcceptedResponse,
    MelodyTaskRequest,
    PageQuery,
    TaskRequest,
    TasksResponse,
)

SUBMIT_ERRORS = (400, 411, 413, 415, 422, 503)
LOCATION = {"Location": "Path of the task."}
TASK_ID = {"task_id": "Id of the task, from `task_id`."}

blueprint = Blueprint("tasks", __name__)


@blueprint.post("/generate-async")
@operation(
    Operation(
        "Submit a task that makes music from text",
        "tasks",
        Access.GENERATE,
        {202: (AcceptedResponse,)},
        description="The task is on disk when it is answered, and reaches exactly one final state.",
        json=TaskRequest,
        errors=SUBMIT_ERRORS,
        headers=LOCATION,
        request_headers=IDEMPOTENCY_HEADER,
        examples={
            "demo": {"prompt": "warm analog synth arpeggio, 100 bpm", "model_size": "demo", "duration": 2, "seed": 7},
            "MP3": {"prompt": "solo cello", "model_size": "demo", "duration": 1, "output_format": "mp3"},
        },
    )
)
def generate_async() -> Response:
    fields = parse_json(TaskRequest, services().config.audio.max_json_bytes)
    with admitted(fields, services().catalog.get(fields.model_size), idempotency_key()) as command:
        return accepted(submit_task(command, fields.webhook_url))


@blueprint.post("/generate-with-melody-async")
@operation(
    Operation(
        "Submit a task that makes music from text and a tune",
        "tasks",
        Access.GENERATE,
        {202: (AcceptedResponse,)},
        description="The task, with its tune, is on disk when it is answered.",
        form=MelodyTaskRequest,
        errors=SUBMIT_ERRORS,
        headers=LOCATION,
        request_headers=IDEMPOTENCY_HEADER,
    )
)
def generate_with_melody_async() -> Response:
    fields = parse_form(MelodyTaskRequest, "melody", NO_FILE)
    with admitted(fields, services().catalog.melody_checkpoint(fields.model_size), idempotency_key()) as command:
        with services().request_slots.acquire():  # decoders may have to be waited for
            melody = services().melodies.decode(cast(BinaryIO, fields.melody.stream))
        return accepted(submit_task(replace(command, melody=melody), fields.webhook_url))


@blueprint.get("/tasks/<task_id>")
@operation(
    Operation(
        "Look at a task",
        "tasks",
        Access.READ,
        {200: TASK_RESPONSES},
        description="410 when the task is completed but its audio is not kept any more.",
        parameters=TASK_ID,
        errors=(404, 410, 503),
    )
)
def task(task_id: str) -> dict[str, Any]:
    found = services().tasks.service.get(task_id, caller().owner)
    check_audio(found)
    return _shown(found)


@blueprint.delete("/tasks/<task_id>")
@operation(
    Operation(
        "Cancel a task",
        "tasks",
        Access.GENERATE,
        {200: TASK_RESPONSES, 202: TASK_RESPONSES},
        description="A queued task is canceled at once (200), a running one after its current step (202). A task that "
        "has ended stays as it is and is shown (200), so that it can be canceled twice.",
        parameters=TASK_ID,
        errors=(404, 503),
    )
)
def cancel_task(task_id: str) -> Response:
    found = services().tasks.service.cancel(task_id, caller().owner)
    response = jsonify(_shown(found))
    response.status_code = 200 if found.is_final else 202
    return response


@blueprint.get("/tasks")
@operation(
    Operation(
        "List the tasks, newest first",
        "tasks",
        Access.READ,
        {200: (TasksResponse,)},
        query=PageQuery,
        errors=(400, 503),
    )
)
def list_tasks() -> dict[str, Any]:
    query = parse_query(PageQuery)
    before = None if query.cursor is None else int(query.cursor)
    page = services().tasks.service.page(caller().owner, before=before, limit=query.limit + 1)
    has_more = len(page) > query.limit
    page = page[: query.limit]
    return {"tasks": [_shown(found) for found in page], "next_cursor": str(page[-1].number) if has_more else None}


def _shown(found: Task) -> dict[str, Any]:
    return task_json(found, services().store, services().tasks.service.estimate(found))
