"""The routes of a model that Cog serves, such as Replicate's meta/musicgen in a container."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, jsonify

from audiocraft_api import __version__
from audiocraft_api.core.errors import EngineDied, ModelLoading, NotFound, Unavailable
from audiocraft_api.tasks.prediction import CLIENT_ID
from audiocraft_api.web.auth import caller
from audiocraft_api.web.compat.predictions import predict, read_prediction, shown
from audiocraft_api.web.compat.translation import refusal
from audiocraft_api.web.operations import Access, Dialect, access
from audiocraft_api.web.request_headers import parse_preference
from audiocraft_api.web.services import services

PREDICTION_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")
STATUSES: dict[type[Unavailable], str] = {ModelLoading: "STARTING", EngineDied: "DEFUNCT"}

blueprint = Blueprint("compat_cog", __name__)


def error_body(status: int, code: str, message: str, details: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return an error as Cog has it, and its status."""
    if errors := details.get("errors"):
        found = [
            {"loc": ["body", "input", name], "msg": text, "type": "value_error"}
            for name, texts in errors.items()
            for text in texts
        ]
        return {"detail": found}, 422
    shown_details = {name: details[name] for name in ("category", "suggestion") if details.get(name)}
    return {"error": message, "detail": message, "code": code, "status": "failed"} | shown_details, status


DIALECT = Dialect(error_body)


@blueprint.post("/predictions")
@access(Access.GENERATE, DIALECT)
def create() -> Response:
    return _created(read_prediction())


@blueprint.put("/predictions/<prediction_id>")
@access(Access.GENERATE, DIALECT)
def put(prediction_id: str) -> Response:
    """Create a prediction with an ID that the client chose. Repeating the request returns the same prediction."""
    if not PREDICTION_ID.fullmatch(prediction_id):
        raise refusal("id", "must have 1 to 200 letters, digits, dots, hyphens or underscores.")
    body = read_prediction()
    if body.get("id") not in (None, prediction_id):
        raise refusal("id", "must be the same in the body and in the path.")
    return _created(body, CLIENT_ID + prediction_id)


def _created(body: dict[str, Any], key: str | None = None) -> Response:
    longest = services().config.engine.request_deadline_seconds
    preference = parse_preference(longest)
    task = predict(body, None, preference.wait_seconds if preference else longest, key)
    response = jsonify(shown(task))
    response.status_code = 200 if task.is_final else 202
    return response


@blueprint.post("/predictions/<prediction_id>/cancel")
@access(Access.GENERATE, DIALECT)
def cancel(prediction_id: str) -> tuple[dict[str, Any], int]:
    tasks, owner = services().tasks.service, caller().owner
    task = tasks.find(owner, CLIENT_ID + prediction_id)
    try:
        tasks.cancel(task.id if task else prediction_id, owner)
    except NotFound:
        return {}, 404
    return {}, 200


@blueprint.get("/health-check")
@access(Access.OPEN, DIALECT)
def health_check() -> dict[str, Any]:
    status = "READY"
    try:
        services().health.check_ready()
    except Unavailable as error:
        status = STATUSES.get(type(error), "UNHEALTHY")
    return {"status": status, "setup": {"status": "succeeded", "logs": ""}, "version": {"audiocraft_api": __version__}}
