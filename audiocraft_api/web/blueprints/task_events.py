"""The progress of a task as server-sent events (HTML Living Standard, 9.2).

Each event is the task as `GET /tasks/<id>` returns it, with its version as the event ID. Events carry the latest state
and may skip states in between: a client that reconnects with `Last-Event-ID` may miss progress, never the final state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from flask import Blueprint, Response, request

from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.services import Services
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.view import task_json
from audiocraft_api.web.admission import reserve_stream_slot
from audiocraft_api.web.auth import caller
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.responses import check_audio_kept
from audiocraft_api.web.services import services

MEDIA_TYPE = "text/event-stream"
POLL_SECONDS = 0.5  # interval of the checks for a disconnect, a shutdown and a new queue position
RECONNECT_MILLISECONDS = 1000

blueprint = Blueprint("task_events", __name__)


@blueprint.get("/tasks/<task_id>/events")
@Operation(
    summary="Follow a task with server-sent events",
    tag="tasks",
    access=Access.READ,
    responses={200: (MEDIA_TYPE,), 204: ()},
    description="The data of each event is the response of `GET /tasks/{task_id}`; the stream ends after the final "
    "state. With the header `Last-Event-ID` the stream resumes after that event; status 204 means that no more events "
    "will follow.",
    parameters={"task_id": "ID of the task: `task_id` of the response that accepted it."},
    request_headers={
        "Last-Event-ID": {"type": "string", "description": "ID of the last event that the client received."}
    },
    errors=(410,),
)
def task_events(task_id: str) -> Response:
    task = services().tasks.service.get(task_id, caller().owner)
    check_audio_kept(task)
    last_event_id = _last_event_id()
    if task.is_final and last_event_id == task.version:
        return Response(status=204)  # an EventSource does not reconnect after 204
    reserve_stream_slot()
    events = _events(services(), task, last_event_id, client_gone(request.environ))
    response = Response(events, mimetype=MEDIA_TYPE)
    response.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    return response


def _last_event_id() -> int | None:
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 19 else None


def _events(services: Services, task: Task, sent: int | None, client_gone: Callable[[], bool]) -> Iterator[str]:
    """Yield the events after version `sent` until the final state, a disconnect or a shutdown."""
    tasks, heartbeat_seconds = services.tasks.service, services.config.tasks.event_heartbeat_seconds
    position: int | None = None
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
    next_heartbeat = time.monotonic() + heartbeat_seconds
    try:
        while not (client_gone() or services.draining.is_set()):
            estimate = tasks.estimate(task)
            if sent != task.version or (position is not None and estimate.position != position):
                yield f"id: {task.version}\ndata: {json.dumps(task_json(task, services.store, estimate))}\n\n"
                next_heartbeat = time.monotonic() + heartbeat_seconds
            elif time.monotonic() >= next_heartbeat:
                yield ": heartbeat\n\n"
                next_heartbeat = time.monotonic() + heartbeat_seconds
            if task.is_final:
                return
            sent, position = task.version, estimate.position
            task = tasks.wait_for_change(task, min(POLL_SECONDS, heartbeat_seconds))
    except (NotFound, StorageUnavailable):
        return  # without a final state: the client reconnects and sees the reason in the status
