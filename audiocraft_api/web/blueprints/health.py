"""Liveness and readiness of the server. Neither route ever waits for a model, a queue or a store."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.schemas.responses import HealthResponse, ReadyResponse
from audiocraft_api.web.services import services

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
@Operation(
    summary="Check that the server is alive", tag="health", access=Access.OPEN, responses={200: (HealthResponse,)}
)
def health() -> dict[str, Any]:
    return HealthResponse(**services().health.report()).model_dump()


@blueprint.get("/ready")
@Operation(
    summary="Check that the server accepts work",
    tag="health",
    access=Access.OPEN,
    responses={200: (ReadyResponse,)},
    description="Status 503 while the server shuts down, while it preloads models, or when its engine has died or "
    "stalled; `code` says which. A busy server is ready.",
    errors=(503,),
)
def ready() -> dict[str, Any]:
    services().health.check_ready()
    return ReadyResponse().model_dump()
