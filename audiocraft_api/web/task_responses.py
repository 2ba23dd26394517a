"""Between the routes and the task service: how a task is accepted and waited for."""

from __future__ import annotations

import base64
import re
import time
import uuid
from contextlib import nullcontext, suppress
from typing import Any

from flask import Response, jsonify, request, url_for

from audiocraft_api.core.errors import (
    AudioGone,
    ClientDisconnected,
    InvalidRequest,
    NotFound,
    StorageUnavailable,
    error_of,
)
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.task import Task
from audiocraft_api.web.admission import settle_charge
from audiocraft_api.web.auth import caller
from audiocraft_api.web.context import request_id
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.prefer import Preference
from audiocraft_api.web.schemas import GenerateBase64Response, GenerateUrlResponse
from audiocraft_api.web.services import services
from audiocraft_api.web.task_schemas import AcceptedResponse

IDEMPOTENCY_KEY = r"^[\x21-\x7e]{1,255}$"
IDEMPOTENCY_HEADER: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "type": "string",
        "pattern": IDEMPOTENCY_KEY,
        "description": "Sent again with the same request, it is answered with the same task; with another one, 422. "
        "It is known for as long as the task is.",
    }
}
POLL_SECONDS = 0.5  # how late a client that left, or a stopping server, is noticed while a request waits for a task


def submit_task(command: GenerateCommand, webhook_url: str | None = None) -> Task:
    """Accept a command as a task of the current request. Raises what the task service raises, InvalidRequest.

    A task that an earlier request has made, and paid for, costs nothing of the day's quota again.
    """
    if webhook_url is not None:
        services().tasks.webhooks.check(webhook_url)
    max_unfinished = caller().limits.concurrent_tasks
    if max_unfinished is None:
        max_unfinished = services().config.limits.concurrent_tasks
    task_id = str(uuid.uuid4())
    task = services().tasks.service.submit(
        command,
        owner=caller().owner,
        idempotency_key=idempotency_key(),
        webhook_url=webhook_url,
        max_unfinished=max_unfinished,
        task_id=task_id,
    )
    settle_charge(charged=task.id == task_id)  # a repeat of an accepted task is not charged again
    return task


def idempotency_key() -> str | None:
    """Return the current request's key. Raises InvalidRequest for one that cannot be kept."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
        sentence = "Idempotency-Key must be 1 to 255 visible ASCII characters without spaces."
        raise InvalidRequest(sentence, {"Idempotency-Key": [sentence]})
    return key


def accepted(task: Task) -> Response:
    """Answer 202 with a task."""
    answer = AcceptedResponse(
        task_id=task.id,
        status=_status(task),
        seed=task.command["seed"],
        events_url=url_for("task_events.task_events", task_id=task.id),
        request_id=request_id(),
    )
    response = jsonify(answer.model_dump())
    response.status_code = 202
    response.headers["Location"] = url_for("tasks.task", task_id=task.id)
    return response


def answer_by_task(command: GenerateCommand, return_type: str, preference: Preference) -> Response:
    """Answer a synchronous request as its client prefers: 200 when the audio is there in time, else 202.

    Raises what ended the task. A client that leaves before it has heard of its task cancels it, unless it can ask for
    it again by an idempotency key.
    """
    # The place comes first: who finds none is refused, and a task that was accepted is told.
    with services().request_slots.acquire() if preference.wait_seconds else nullcontext():
        task = submit_task(command)
        with suppress(StorageUnavailable):  # the task may go on; its client hears of it as it was last seen
            task = _wait(task, preference.wait_seconds)
    if task.state == "failed":
        raise error_of(task.error_code or "", task.error or "")
    response = jsonify(_result(task, return_type)) if task.state == "completed" else accepted(task)
    response.headers["Preference-Applied"] = preference.applied
    return response


def _wait(task: Task, seconds: float) -> Task:
    tasks, gone = services().tasks.service, client_gone(request.environ)
    until = time.monotonic() + seconds
    while not task.is_final and not services().draining.is_set() and (left := until - time.monotonic()) > 0:
        task = tasks.wait_for_change(task, min(left, POLL_SECONDS))
        if gone():
            if task.idempotency_key is None:
                tasks.cancel(task.id, task.owner)
            raise ClientDisconnected
    return task


def _result(task: Task, return_type: str) -> dict[str, Any]:
    """Return what the synchronous route would have answered. Raises AudioGone."""
    result = dict(task.result or {})
    filename = result.pop("filename")
    fields = result | {"request_id": request_id()}
    if return_type == "url":
        return GenerateUrlResponse(audio_url=services().store.url_for(filename), **fields).model_dump()
    try:
        with services().store.open(filename).file as file:
            audio = file.read()
    except NotFound as error:
        raise AudioGone("The audio of this task is not kept any more.") from error
    return GenerateBase64Response(audio=base64.b64encode(audio).decode(), **fields).model_dump()


def check_audio(task: Task) -> None:
    """Raise AudioGone when a completed task's audio file is not there any more."""
    if task.state != "completed" or task.result is None:
        return
    try:
        services().store.open(task.result["filename"]).file.close()
    except NotFound as error:
        raise AudioGone("The audio of this task is not kept any more.") from error


def _status(task: Task) -> str:
    """Return the state in the words of the founding contract, which knows no queue."""
    return "processing" if task.state == "queued" else task.state
