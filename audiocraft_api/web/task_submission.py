"""Submits generations as tasks, and waits for a task as long as a synchronous client prefers."""

from __future__ import annotations

import uuid
from contextlib import nullcontext, suppress

from flask import Response, jsonify, request

from audiocraft_api.core.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    ShuttingDown,
    StorageUnavailable,
    error_of,
)
from audiocraft_api.core.waiting import POLL_SECONDS, Waiter
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.task import Task
from audiocraft_api.web.admission import settle_charge
from audiocraft_api.web.auth import caller
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.request_headers import Preference, parse_idempotency_key
from audiocraft_api.web.responses import completed_task_json, task_accepted_response
from audiocraft_api.web.services import services


def submit_task(
    command: GenerateCommand,
    webhook_url: str | None = None,
    view: str | None = None,
    idempotency_key: str | None = None,
) -> Task:
    """Accept a command as a task of the current caller, or return the task that the same request created before.

    `idempotency_key` replaces that of the header.

    Raises as `TaskService.submit`, and InvalidRequest. Only a new task is charged to the daily quota.
    """
    if webhook_url is not None:
        services().tasks.webhooks.check_url(webhook_url)
    max_unfinished = caller().limits.concurrent_tasks
    if max_unfinished is None:
        max_unfinished = services().config.limits.concurrent_tasks
    task_id = str(uuid.uuid4())
    task = services().tasks.service.submit(
        command,
        owner=caller().owner,
        idempotency_key=idempotency_key or parse_idempotency_key(),
        webhook_url=webhook_url,
        view=view,
        max_unfinished=max_unfinished,
        task_id=task_id,
    )
    settle_charge(charged=task.id == task_id)
    return task


def respond_by_task(command: GenerateCommand, return_type: str, preference: Preference) -> Response:
    """Run a command as a task: respond with its audio (200) if it is ready in time, else with the task (202).

    A client that disconnects before it knows its task's id cancels the task, unless it can find the task again by an
    idempotency key. Raises the error that ended the task.
    """
    task = run_as_task(command, preference.wait_seconds)
    if task.state == "failed":
        raise error_of(task.error_code or "", task.error or "")
    completed = task.state == "completed"
    response = jsonify(completed_task_json(task, return_type)) if completed else task_accepted_response(task)
    response.headers["Preference-Applied"] = preference.applied
    return response


def run_as_task(
    command: GenerateCommand,
    wait_seconds: float,
    webhook_url: str | None = None,
    view: str | None = None,
    idempotency_key: str | None = None,
) -> Task:
    """Submit a command as a task, and return the task once it has ended, or as it is after `wait_seconds`.

    Raises as `submit_task`, and ClientDisconnected.
    """
    # The request slot comes first: a client that is refused has no task, and an accepted task is always reported.
    with services().request_slots.acquire() if wait_seconds else nullcontext():
        task = submit_task(command, webhook_url, view, idempotency_key)
        return _wait_for(task, wait_seconds) if wait_seconds else task


def _wait_for(task: Task, seconds: float) -> Task:
    """Return the task once it has ended, or as it was last seen."""
    waiter = Waiter(client_gone(request.environ), seconds, services().draining)
    try:
        # In an outage of the store the task may still run; its client gets the last known state.
        with suppress(DeadlineExceeded, ShuttingDown, StorageUnavailable):
            while not task.is_final:
                task = services().tasks.service.wait_for_change(task, POLL_SECONDS)
                waiter.raise_if_stopped()
    except ClientDisconnected:
        if task.idempotency_key is None:
            services().tasks.service.cancel(task.id, task.owner)
        raise
    return task
