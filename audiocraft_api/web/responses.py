"""Renders what several routes respond with: generated audio, accepted tasks, and tasks as they are."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from flask import Response, jsonify, request, url_for
from pydantic import BaseModel

from audiocraft_api.core.errors import AudioGone, NotFound
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import FailedVariation, GenerateCommand, GeneratedBytes, GeneratedFile
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.view import task_json
from audiocraft_api.web.context import request_id
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.schemas.responses import GenerateBase64Response, GenerateUrlResponse
from audiocraft_api.web.schemas.tasks import TaskAcceptedResponse
from audiocraft_api.web.services import services

_Fields: TypeAlias = dict[str, Any]  # of a JSON object

# What every synchronous route responds with, for OpenAPI.
AUDIO_RESPONSES: Mapping[int, tuple[type[BaseModel], ...]] = {
    200: (GenerateUrlResponse, GenerateBase64Response),
    202: (TaskAcceptedResponse,),
}
AUDIO_DESCRIPTION = (
    "Responds when the audio is ready. Closing the connection stops the generation. "
    "With the header `Prefer: respond-async`, the server responds with a task at once; with `Prefer: wait=N`, it "
    "responds with a task if the audio is not ready within N seconds. `Idempotency-Key` takes effect together with "
    "`Prefer`."
)
AUDIO_GONE = "The audio of this task is no longer stored; submit the request again to generate it again."


def generate_audio_json(command: GenerateCommand, return_type: str) -> dict[str, Any]:
    """Run a command while its client waits, and return the body of the response."""
    waiter = Waiter(client_gone(request.environ), services().config.engine.request_deadline_seconds)
    if return_type == "base64":
        generated = services().generation.generate_bytes(command, waiter)
        return _body(GenerateBase64Response, _audio_json(generated), map(_audio_json, generated.variations))
    stored = services().generation.generate_file(command, waiter)
    return _body(GenerateUrlResponse, _audio_json(stored), map(_audio_json, stored.variations))


def completed_task_json(task: Task, return_type: str) -> dict[str, Any]:
    """Return the body of a synchronous response from a completed task. Raises AudioGone."""
    result = dict(task.result or {})
    variations = result.pop("variations", ())
    if return_type == "url":
        return _body(GenerateUrlResponse, _with_url(result), map(_with_url, variations))
    return _body(GenerateBase64Response, _with_audio(result), map(_with_audio, variations))


def _body(
    schema: type[GenerateUrlResponse | GenerateBase64Response], fields: _Fields, variations: Iterable[_Fields]
) -> dict[str, Any]:
    found = list(variations) or None
    return schema.model_validate(fields | {"variations": found, "request_id": request_id()}).model_dump()


def _audio_json(made: GeneratedFile | GeneratedBytes | FailedVariation) -> _Fields:
    if isinstance(made, FailedVariation):
        return {"seed": made.seed, "error": made.error.message, "code": made.error.code}
    stems: dict[str, str]
    if isinstance(made, GeneratedFile):
        audio, stems = {"audio_url": made.url}, {name: stem.url for name, stem in made.stems.items()}
    else:
        audio, stems = {"audio": _base64(made.audio)}, {name: _base64(stem) for name, stem in made.stems.items()}
    return audio | made.recipe.to_dict() | ({"stems": stems} if stems else {})


def _with_url(part: _Fields) -> _Fields:
    """Return a part of a stored result with the link to its file; a failed variation has none."""
    if "filename" not in part:
        return part
    return _linked(part, "audio_url", services().store.url_for)


def _with_audio(part: _Fields) -> _Fields:
    """Return a part of a stored result with the content of its file. Raises AudioGone."""
    if "filename" not in part:
        return part
    return _linked(part, "audio", lambda filename: _base64(stored_audio(filename)))


def _linked(part: _Fields, field: str, show: Callable[[str], str]) -> _Fields:
    """Return a part of a stored result with what `show` returns for its filenames in their place."""
    stems = {"stems": {name: show(filename) for name, filename in part["stems"].items()}} if "stems" in part else {}
    return {name: value for name, value in part.items() if name != "filename"} | {field: show(part["filename"])} | stems


def _base64(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


def stored_audio(filename: str) -> bytes:
    """Return the content of a file of a task. Raises AudioGone."""
    try:
        with services().store.open(filename).file as file:
            return file.read()
    except NotFound as error:
        raise AudioGone(AUDIO_GONE) from error


def task_accepted_response(task: Task) -> Response:
    """Return a response with status 202 and a Location header."""
    body = TaskAcceptedResponse(
        task_id=task.id,
        status="processing" if task.state == "queued" else task.state,  # the contract has no status for queued
        seed=task.command["seed"],
        events_url=url_for("task_events.task_events", task_id=task.id),
        request_id=request_id(),
    )
    response = jsonify(body.model_dump())
    response.status_code = 202
    response.headers["Location"] = url_for("tasks.task", task_id=task.id)
    return response


def current_task_json(task: Task) -> dict[str, Any]:
    """Return the body that shows a task, with its queue position and remaining time."""
    return task_json(task, services().store, services().tasks.service.estimate(task))


def check_audio_kept(task: Task) -> None:
    """Raise AudioGone when a completed task's audio file no longer exists."""
    if task.state != "completed" or task.result is None:
        return
    try:
        services().store.open(task.result["filename"]).file.close()
    except NotFound as error:
        raise AudioGone(AUDIO_GONE) from error
