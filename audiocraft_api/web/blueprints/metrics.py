"""Metrics for Prometheus. The admin listener serves the same metrics without a key."""

from __future__ import annotations

from flask import Blueprint, Response

from audiocraft_api.telemetry.metrics import CONTENT_TYPE
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.services import services

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@Operation(
    summary="Get the metrics of this process in the Prometheus text format",
    tag="health",
    access=Access.ADMIN,
    responses={200: ("text/plain",)},
)
def metrics() -> Response:
    return Response(services().telemetry.metrics.render(), content_type=CONTENT_TYPE)
