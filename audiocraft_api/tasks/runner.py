"""Runs one claimed task: generate, store the audio, write the outcome. Knows no queue and starts no worker.

Errors fall into three groups. Temporary ones (the model, memory or storage is unavailable) use up an attempt, and the
task is tried again after a pause. A full or closing engine uses up no attempt. Every other error fails the task at
once. An outcome that cannot be written is retried until the worker stops, so that an outage of the store does not
waste finished work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from audiocraft_api.config.tasks import TaskSettings
from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    QueueFull,
    ShuttingDown,
    StorageUnavailable,
    Unavailable,
)
from audiocraft_api.core.heartbeat import Heartbeat
from audiocraft_api.core.log_context import log_lines_of
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import FailedVariation, GeneratedFile, Progress
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.command import TRACE, decode_command
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.store.base import HeartbeatStatus, TaskStore
from audiocraft_api.tasks.task import FINAL_STATES, State, Task

logger = logging.getLogger(__name__)


class TaskRunner:
    """Runs tasks, each in its caller's thread."""

    def __init__(
        self,
        tasks: TaskStore,
        generation: GenerationService,
        files: AudioStore,
        config: TaskSettings,
        observer: Observer = NULL_OBSERVER,
        intervals: TaskIntervals = DEFAULT_INTERVALS,
    ) -> None:
        self._tasks = tasks
        self._observer = observer
        self._generation = generation
        self._files = files
        self._deadline_seconds = config.deadline_seconds
        self._max_attempts = config.attempts
        self._heartbeat_seconds = min(intervals.heartbeat, config.lease_seconds / 4)
        self._intervals = intervals

    def run(self, task: Task, stopping: threading.Event) -> None:
        """Run a claimed task to its end, or release it when `stopping` is set. Raises no error of the generation."""
        with log_lines_of(task.id), self._observer.task(task.id, task.attempts, task.command.get(TRACE)):
            self._run(task, stopping)

    def _run(self, task: Task, stopping: threading.Event) -> None:
        file: GeneratedFile | None = None
        with TaskHeartbeat(self._tasks, task, self._heartbeat_seconds, stopping) as heartbeat:
            try:
                file = self._generate(task, heartbeat)
                result = result_of(file)
                is_stored = self._finish("completed", lambda: self._tasks.complete(task, result), stopping)
            except Exception as error:  # noqa: BLE001 every error must end the task
                state, write = self._outcome_of(error, task, heartbeat, stopping)
                is_stored = False
                self._finish(state, write, stopping)
        if file is not None and not is_stored:
            self._discard_late_result(task, file)

    def _generate(self, task: Task, heartbeat: TaskHeartbeat) -> GeneratedFile:
        command = decode_command(task.command, self._tasks.audio(task.id))
        waiter = Waiter(heartbeat.should_stop, self._deadline_seconds * command.time_factor)
        return self._generation.generate_file(command, waiter, heartbeat.progress)

    def _outcome_of(
        self, error: Exception, task: Task, heartbeat: TaskHeartbeat, stopping: threading.Event
    ) -> tuple[State, Callable[[], bool]]:
        """Return the state that an error leads to, and the store's method that writes it."""
        if isinstance(error, Canceled) and heartbeat.status == "canceled":
            return "canceled", lambda: self._tasks.cancel(task)
        if isinstance(error, Canceled):
            return "queued", lambda: self._tasks.release(task, count_attempt=not stopping.is_set())
        if isinstance(error, (QueueFull, ShuttingDown)):
            return "queued", lambda: self._tasks.release(task, pause_seconds=self._intervals.engine_pause)
        if isinstance(error, Unavailable) and task.attempts < self._max_attempts:
            logger.warning("Task %s cannot run now and will be tried again: %s", task.id, error)
            pause_seconds = error.retry_after_seconds
            return "queued", lambda: self._tasks.release(task, pause_seconds=pause_seconds, count_attempt=True)
        if isinstance(error, AudioCraftError):
            logger.warning("Task %s failed: %s", task.id, error)
            message, code = error.message, error.code
        else:
            logger.error("Task %s failed.", task.id, exc_info=error)
            message, code = "The task failed because of an internal server error.", AudioCraftError.code
        return "failed", lambda: self._tasks.fail(task, message, code)

    def _finish(self, state: State, write: Callable[[], bool], stopping: threading.Event) -> bool:
        """Write an outcome; return whether it was stored. Report a final state to the observer."""
        is_stored = self._write(write, stopping)
        if is_stored and state in FINAL_STATES:
            self._observer.task_ended(state)
        return is_stored

    def _write(self, write: Callable[[], bool], stopping: threading.Event) -> bool:
        """Write an outcome. During an outage of the store, retry until `stopping` is set."""
        while True:
            is_last = stopping.is_set()
            try:
                return write()
            except StorageUnavailable:
                if is_last:
                    return False
            stopping.wait(self._intervals.store_retry)

    def _discard_late_result(self, task: Task, file: GeneratedFile) -> None:
        """Delete the audio of a task that another worker took or that was canceled.

        Keep it if the result was stored after all: only the store's response was lost.
        """
        try:
            found = self._tasks.get(task.id)
            if found is not None and found.filename == file.filename:
                self._observer.task_ended(found.state)
                return
            logger.info("The result of task %s came too late and is deleted.", task.id)
            for filename in file.filenames:
                self._files.delete(filename)
        except StorageUnavailable:
            logger.warning(
                "%s could not be deleted; if no task uses them, the audio store's sweep will.",
                ", ".join(file.filenames),
            )


class TaskHeartbeat(Heartbeat):
    """Renews a task's lease, writes the progress, and learns whether the task should stop."""

    def __init__(self, tasks: TaskStore, task: Task, seconds: float, stopping: threading.Event) -> None:
        super().__init__(self._renew_lease, seconds, f"heartbeat-{task.id}")
        self.status: HeartbeatStatus = "leased"
        self.progress = Progress()
        self._tasks = tasks
        self._task = task
        self._stopping = stopping

    def should_stop(self) -> bool:
        """Return whether the task was canceled or lost, or the worker is stopping."""
        return self.status != "leased" or self._stopping.is_set()

    def _renew_lease(self) -> bool:
        with suppress(StorageUnavailable):  # the store logged it; the lease may outlast the outage
            self.status = self._tasks.heartbeat(self._task, *self.progress.frames)
        return self.status == "leased"


def result_of(file: GeneratedFile) -> dict[str, Any]:
    """Return the `result` of a completed task as clients see it."""
    result = {"success": True, **_audio_of(file)}
    return result | {"variations": [_audio_of(part) for part in file.variations]} if file.variations else result


def _audio_of(file: GeneratedFile | FailedVariation) -> dict[str, Any]:
    if isinstance(file, FailedVariation):
        return {"seed": file.seed, "error": file.error.message, "code": file.error.code}
    stems = {"stems": {name: stem.filename for name, stem in file.stems.items()}} if file.stems else {}
    return {"filename": file.filename, **file.recipe.to_dict(), **stems}
