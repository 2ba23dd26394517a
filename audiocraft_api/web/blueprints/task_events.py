"""What happens to a task, as server-sent events (HTML Living Standard, 9.2).

Each event is the task as `GET /tasks/<id>` shows it, with its version as the id. Events tell the latest state and not
every one in between: a client that comes back with `Last-Event-ID` misses progress, never the final state.
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
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.services import services
from audiocraft_api.web.task_responses import check_audio

MEDIA_TYPE = "text/event-stream"
TICK_SECONDS = 0.5  # how late a client that left, a stopping server and a new place in the queue are noticed
RECONNECT_MILLISECONDS = 1000

blueprint = Blueprint("task_events", __name__)


@blueprint.get("/tasks/<task_id>/events")
@operation(
    Operation(
        "Follow a task by server-sent events",
        "tasks",
        Access.READ,
        {200: (MEDIA_TYPE,), 204: ()},
        description="Each event's data is what `GET /tasks/{task_id}` answers; the stream ends after the final state. "
        "With the header `Last-Event-ID` it goes on from there; 204 when nothing comes any more.",
        parameters={"task_id": "Id of the task, from `task_id`."},
        request_headers={
            "Last-Event-ID": {"type": "string", "description": "Id of the last event that the client has seen."}
        },
        errors=(404, 410, 503),
    )
)
def task_events(task_id: str) -> Response:
    task = services().tasks.service.get(task_id, caller().owner)
    check_audio(task)
    seen = _last_event_id()
    if task.is_final and seen == task.version:
        return Response(status=204)  # tells an EventSource to stay away
    reserve_stream_slot()
    stream = _events(services(), task, seen, client_gone(request.environ))
    response = Response(stream, mimetype=MEDIA_TYPE)
    response.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    return response


def _last_event_id() -> int | None:
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 19 else None


def _events(house: Services, task: Task, seen: int | None, gone: Callable[[], bool]) -> Iterator[str]:
    """Yield the events after version `seen`, to the final one, or until the client leaves or the server stops."""
    tasks, beat_seconds = house.tasks.service, house.config.tasks.event_heartbeat_seconds
    position: int | None = None
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
    next_beat = time.monotonic() + beat_seconds
    try:
        while not (gone() or house.draining.is_set()):
            outlook = tasks.estimate(task)
            if seen != task.version or (position is not None and outlook.position != position):
                data = json.dumps(task_json(task, house.store, outlook))
                yield f"id: {task.version}\ndata: {data}\n\n"
                next_beat = time.monotonic() + beat_seconds
            elif time.monotonic() >= next_beat:
                yield ": still here\n\n"
                next_beat = time.monotonic() + beat_seconds
            if task.is_final:
                return
            seen, position = task.version, outlook.position
            task = tasks.wait_for_change(task, min(TICK_SECONDS, beat_seconds))
    except (NotFound, StorageUnavailable):
        return  # without a final state: the client comes back and is told by the status
