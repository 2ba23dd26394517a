"""The operations that routes need: submit, get, list, watch and cancel tasks. Callers see only their own tasks.

Knows the store by its interface and calls `announce` to wake workers for a new task. Knows no engine and no HTTP.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from audiocraft_api.config.tasks import TaskSettings
from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.errors import NotFound, QueueFull, TooManyTasks
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.command import TRACE, VIEW, encode_command, fingerprint
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import NewTask, Task

DEFAULT_RUN_SECONDS = 10.0  # assumed for Retry-After until a task has completed
MAX_RETRY_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class TaskEstimate:
    """How long a task will take. The position is approximate, because the queue alternates between callers."""

    position: int | None  # in the queue, from 1; None unless the task is queued
    eta_seconds: float | None  # until the task is finished; None if unknown


class TaskService:
    """The tasks of all callers; `owner` is the id of a caller's key, None where no keys are configured."""

    def __init__(
        self,
        tasks: TaskStore,
        config: TaskSettings,
        announce: Callable[[Task], None],
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._tasks = tasks
        self._observer = observer
        self._announce = announce
        self._max_queued = config.max_queued
        self._max_audio_bytes = config.max_queued_melody_bytes

    def submit(
        self,
        command: GenerateCommand,
        *,
        owner: str | None = None,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        view: str | None = None,
        max_unfinished: int = 0,
        task_id: str | None = None,
    ) -> Task:
        """Accept a command as a task, or return the task that the owner's idempotency key created earlier.

        A new task gets the id `task_id`, by which the caller can tell the two cases apart. The seed is drawn here, so
        that a second attempt makes the same music. `view` chooses the body of the webhook.

        Raises QueueFull, TooManyTasks (the owner has `max_unfinished` unfinished tasks; 0 means no limit),
        IdempotencyConflict, StorageUnavailable.
        """
        plain, audio = encode_command(command)
        request_fingerprint = fingerprint(plain, audio, webhook_url)
        if command.seed is None:
            plain |= {"seed": secrets.randbelow(MAX_SEED + 1), "seed_drawn": True}
        if trace := self._observer.trace():
            plain[TRACE] = trace
        if view is not None:
            plain[VIEW] = view
        new = NewTask(
            task_id or str(uuid.uuid4()), plain, audio, owner, idempotency_key, request_fingerprint, webhook_url
        )
        try:
            task = self._tasks.submit(
                new,
                max_queued=self._max_queued,
                max_audio_bytes=self._max_audio_bytes,
                max_unfinished=max_unfinished,
            )
        except (QueueFull, TooManyTasks) as error:
            raise type(error)(error.message, self._retry_after_seconds()) from None
        if task.id == new.id:
            self._announce(task)
        return task

    def get(self, task_id: str, owner: str | None = None) -> Task:
        """Return an owner's task. Raises NotFound."""
        return _owned(self._tasks.get(task_id), owner)

    def is_repeat(self, owner: str | None, idempotency_key: str) -> bool:
        """Return whether the owner's idempotency key already has a task, which `submit` would return."""
        return self._tasks.find_by_key(owner, idempotency_key) is not None

    def find(self, owner: str | None, idempotency_key: str) -> Task | None:
        """Return the task that an owner submitted with this idempotency key; None if there is none."""
        return self._tasks.find_by_key(owner, idempotency_key)

    def page(self, owner: str | None = None, *, before: int | None = None, limit: int = 50) -> list[Task]:
        """Return up to `limit` of an owner's tasks, newest first, with a `number` below `before`."""
        return self._tasks.page(owner, before=before, limit=limit)

    def cancel(self, task_id: str, owner: str | None = None) -> Task:
        """Cancel a queued task at once and a running one within a step; leave a final one alone. Raises NotFound."""
        before = self.get(task_id, owner)
        task = _owned(self._tasks.request_cancel(task_id), owner)
        if before.state == "queued" and task.state == "canceled":  # otherwise its worker reports it
            self._observer.task_ended(task.state)
        return task

    def wait_for_change(self, task: Task, timeout_seconds: float) -> Task:
        """Wait until the task has changed or the timeout ends; return it. Raises NotFound when it has expired."""
        return _owned(self._tasks.wait_for_change(task.id, task.version, timeout_seconds), task.owner)

    def estimate(self, task: Task) -> TaskEstimate:
        """Estimate the rest of a task's time from the speed of this task and of recent ones."""
        if task.state == "queued":
            position = self._tasks.position(task.id)
            status = self._tasks.status()
            if position is None or status.mean_run_seconds is None:
                return TaskEstimate(position, None)
            num_rounds = 1 + position / max(status.num_processing, 1)
            return TaskEstimate(position, status.mean_run_seconds * num_rounds)
        if task.state == "processing" and task.started is not None and task.num_frames_done > 0:
            num_frames_left = task.num_frames_total - task.num_frames_done
            elapsed_seconds = max(time.time() - task.started, 0.0)
            return TaskEstimate(None, elapsed_seconds / task.num_frames_done * num_frames_left)
        return TaskEstimate(None, None)

    def _retry_after_seconds(self) -> float:
        status = self._tasks.status()
        run_seconds = status.mean_run_seconds or DEFAULT_RUN_SECONDS
        return min(max(run_seconds / max(status.num_processing, 1), 1.0), MAX_RETRY_AFTER_SECONDS)


def _owned(task: Task | None, owner: str | None) -> Task:
    if task is None or task.owner != owner:
        raise NotFound("There is no such task.")
    return task
