"""What Prometheus reads. The admin listener has the same, and needs no key."""

from __future__ import annotations

from flask import Blueprint, Response

from audiocraft_api.telemetry.metrics import CONTENT_TYPE
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.services import services

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@operation(
    Operation(
        "Metrics of this process, in Prometheus' text format",
        "health",
        Access.ADMIN,
        {200: ("text/plain",)},
    )
)
def metrics() -> Response:
    return Response(services().telemetry.metrics.render(), content_type=CONTENT_TYPE)
