"""Is the process alive, and does it take work? Neither answer ever waits on a model, a queue or a store."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from audiocraft_api import __version__
from audiocraft_api.errors import ShuttingDown, Unavailable
from audiocraft_api.http.operations import Access, Operation, operation
from audiocraft_api.http.schemas import HealthAnswer, QueueAnswer, ReadyAnswer
from audiocraft_api.http.services import services

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
@operation(Operation("Whether the server is alive", "health", Access.OPEN, {200: (HealthAnswer,)}))
def health() -> dict[str, Any]:
    status, tasks = services().engine.status(), services().tasks.monitor.status
    return HealthAnswer(
        version=__version__,
        models_loaded=services().cache.loaded_names(),
        device=services().cache.device,
        queue=QueueAnswer(waiting=status.num_waiting + tasks.num_queued, running=status.num_running),
    ).model_dump()


@blueprint.get("/ready")
@operation(
    Operation(
        "Whether the server takes work",
        "health",
        Access.OPEN,
        {200: (ReadyAnswer,)},
        description="503 while it stops or when its engine has died; a busy server is ready.",
        errors=(503,),
    )
)
def ready() -> dict[str, Any]:
    if services().draining.is_set():
        raise ShuttingDown("The server is shutting down.")
    if not services().engine.status().is_alive:
        raise Unavailable("The engine has died; the server must be restarted.")
    return ReadyAnswer().model_dump()
