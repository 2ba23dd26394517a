"""Replicate's routes for predictions. A prediction is a task."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request

from audiocraft_api.tasks.task import Task
from audiocraft_api.web.auth import caller
from audiocraft_api.web.compat.predictions import model_of, no_model, predict, read_prediction, shown
from audiocraft_api.web.compat.replicate_errors import DIALECT
from audiocraft_api.web.operations import Access, access
from audiocraft_api.web.services import services

MAX_WAIT_SECONDS = 60.0
WAIT = re.compile(r"\bwait\b(?:\s*=\s*(\d{1,9}))?")

blueprint = Blueprint("compat_replicate", __name__)


@blueprint.post("/v1/predictions")
@access(Access.GENERATE, DIALECT)
def create() -> Response:
    body = read_prediction()
    version = str(body.get("version") or "")
    return _created(predict(body, model_of(version.partition(":")[0]), _wait_seconds()))


@blueprint.post("/v1/models/<owner>/<name>/predictions")
@access(Access.GENERATE, DIALECT)
def create_of_model(owner: str, name: str) -> Response:
    body = read_prediction()
    model = model_of(f"{owner}/{name}", name)
    if model is None and name != "musicgen":
        raise no_model(f"{owner}/{name}")
    return _created(predict(body, model, _wait_seconds()))


@blueprint.get("/v1/models/<owner>/<name>/versions/<version>")
@access(Access.READ, DIALECT)
def version(owner: str, name: str, version: str) -> dict[str, Any]:
    """Describe the output, which `replicate.run` asks for with a version. All versions are the same here."""
    if name != "musicgen" and model_of(f"{owner}/{name}", name) is None:
        raise no_model(f"{owner}/{name}")
    schemas = {"Output": {"type": "string", "format": "uri", "title": "Output"}}
    schema = {"openapi": "3.0.2", "components": {"schemas": schemas}}
    return {"id": version, "created_at": "1970-01-01T00:00:00Z", "cog_version": "0.9.0", "openapi_schema": schema}


@blueprint.get("/v1/predictions/<prediction_id>")
@access(Access.READ, DIALECT)
def get(prediction_id: str) -> dict[str, Any]:
    return shown(services().tasks.service.get(prediction_id, caller().owner))


@blueprint.post("/v1/predictions/<prediction_id>/cancel")
@access(Access.GENERATE, DIALECT)
def cancel(prediction_id: str) -> dict[str, Any]:
    return shown(services().tasks.service.cancel(prediction_id, caller().owner))


def _wait_seconds() -> float:
    """Return how long the client wants to wait: `Prefer: wait` is as long as possible."""
    found = WAIT.search(request.headers.get("Prefer", ""))
    return min(float(found[1] or MAX_WAIT_SECONDS), MAX_WAIT_SECONDS) if found else 0.0


def _created(task: Task) -> Response:
    # Clients that waited poll only predictions that are "starting", and take all others as ended.
    response = jsonify(shown(task) | ({} if task.is_final else {"status": "starting"}))
    response.status_code = 201
    return response
