"""What the routes ask of tasks: accept, look up, list, watch, cancel. One's tasks are unknown to everybody else.

Knows a store by its interface, and `announce`, which tells the workers of a new task; neither engine nor HTTP.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from audiocraft_api.config import Config
from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.errors import NotFound, QueueFull, TooManyTasks
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.command import TRACE, fingerprint, pack
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import NewTask, QueueStatus, Task

DEFAULT_RUN_SECONDS = 10.0  # a guess for Retry-After before the first task is completed
MAX_RETRY_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class TaskEstimate:
    """What lies before a task: its place among the queued (about: callers are served in turn) and the seconds to its end, where known."""

    position: int | None
    eta_seconds: float | None


class TaskService:
    """The tasks of all callers; `owner` is the id of a caller's key, None where no keys are configured."""

    def __init__(
        self, tasks: TaskStore, config: Config, announce: Callable[[Task], None], observer: Observer = NULL_OBSERVER
    ) -> None:
        self._tasks = tasks
        self._observer = observer
        self._announce = announce
        self._max_queued = config.tasks.max_queued
        self._max_audio_bytes = config.tasks.max_queued_melody_bytes

    def submit(
        self,
        command: GenerateCommand,
        *,
        owner: str | None = None,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        max_unfinished: int = 0,
        task_id: str | None = None,
    ) -> Task:
        """Accept a command as a task, or return the task that the same command and idempotency key made before.

        A new task gets the id `task_id`, by which its caller knows it. The seed is drawn here, so that a second attempt
        makes the same music. Raises QueueFull, TooManyTasks when `max_unfinished` tasks of the owner are not finished
        (0 is no bound), IdempotencyConflict, StorageUnavailable.
        """
        plain, audio = pack(command)
        asked = fingerprint(plain, audio, webhook_url)
        if command.seed is None:
            plain |= {"seed": secrets.randbelow(MAX_SEED + 1), "seed_drawn": True}
        if trace := self._observer.trace():
            plain[TRACE] = trace
        new = NewTask(task_id or str(uuid.uuid4()), plain, audio, owner, idempotency_key, asked, webhook_url)
        try:
            task = self._tasks.submit(
                new,
                max_queued=self._max_queued,
                max_audio_bytes=self._max_audio_bytes,
                max_unfinished=max_unfinished,
            )
        except (QueueFull, TooManyTasks) as error:
            raise type(error)(error.message, self._seconds_to_a_place(self._tasks.status())) from None
        if task.id == new.id:
            self._announce(task)
        return task

    def get(self, task_id: str, owner: str | None = None) -> Task:
        """Return an owner's task. Raises NotFound."""
        return _owned(self._tasks.get(task_id), owner)

    def has_made(self, owner: str | None, idempotency_key: str) -> bool:
        """Say whether a repeat of this key would be answered with the task that it made before."""
        return self._tasks.made_by(owner, idempotency_key) is not None

    def page(self, owner: str | None = None, *, before: int | None = None, limit: int = 50) -> list[Task]:
        """Return an owner's tasks, newest first, from under the `number` of the last page's last task."""
        return self._tasks.page(owner, before=before, limit=limit)

    def cancel(self, task_id: str, owner: str | None = None) -> Task:
        """Cancel a queued task at once, a running one within a step; a final one stays as it is. Raises NotFound."""
        before = self.get(task_id, owner)
        task = _owned(self._tasks.request_cancel(task_id), owner)
        if before.state == "queued" and task.state == "canceled":  # else its worker tells
            self._observer.task_ended(task.state)
        return task

    def wait_for_change(self, task: Task, timeout_seconds: float) -> Task:
        """Return the task once it has changed, or as it is after the time-out. Raises NotFound when it expired."""
        return _owned(self._tasks.wait_for_change(task.id, task.version, timeout_seconds), task.owner)

    def estimate(self, task: Task) -> TaskEstimate:
        """Estimate a task's way to its end from the measured speed."""
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

    def status(self) -> QueueStatus:
        """Return how many tasks wait and run."""
        return self._tasks.status()

    def _seconds_to_a_place(self, status: QueueStatus) -> float:
        run_seconds = status.mean_run_seconds or DEFAULT_RUN_SECONDS
        return min(max(run_seconds / max(status.num_processing, 1), 1.0), MAX_RETRY_AFTER_SECONDS)


def _owned(task: Task | None, owner: str | None) -> Task:
    if task is None or task.owner != owner:
        raise NotFound("There is no such task.")
    return task
