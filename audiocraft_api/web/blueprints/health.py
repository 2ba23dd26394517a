"""Is the process alive, and does it take work? Neither answer ever waits on a model, a queue or a store."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.schemas import HealthResponse, ReadyResponse
from audiocraft_api.web.services import services

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
@operation(Operation("Whether the server is alive", "health", Access.OPEN, {200: (HealthResponse,)}))
def health() -> dict[str, Any]:
    return HealthResponse(**services().health.report()).model_dump()


@blueprint.get("/ready")
@operation(
    Operation(
        "Whether the server takes work",
        "health",
        Access.OPEN,
        {200: (ReadyResponse,)},
        description="503 while it stops, while models are loaded that it needs first, or when its engine has died or stalled; `code` "
        "tells which. A busy server is ready.",
        errors=(503,),
    )
)
def ready() -> dict[str, Any]:
    services().health.check_ready()
    return ReadyResponse().model_dump()
