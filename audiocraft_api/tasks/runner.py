"""Runs one claimed task to its end: generate, store, write the outcome. Knows no queue and starts no worker.

A lack that may pass (no model, no memory, no storage) uses up an attempt and the task comes again after a pause; a
full or closing engine uses up none; every other error ends the task at its first attempt. An outcome that cannot be
written is tried again until the worker stops: the work is not thrown away because the store has an outage.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from audiocraft_api.config import Config
from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    QueueFull,
    ShuttingDown,
    StorageUnavailable,
    Unavailable,
)
from audiocraft_api.core.log_context import log_lines_of
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GeneratedFile, Progress
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.command import TRACE, unpack
from audiocraft_api.tasks.store.base import HeartbeatResponse, TaskStore
from audiocraft_api.tasks.task import FINAL_STATES, State, Task

HEARTBEAT_SECONDS = 0.5  # at most; bounds how late a cancel and the progress are seen
ENGINE_PAUSE_SECONDS = 1.0  # before a task is brought again to an engine that is full or closed
STORE_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class TaskRunner:
    """Runs tasks, each in its caller's thread."""

    def __init__(
        self,
        tasks: TaskStore,
        generation: GenerationService,
        files: AudioStore,
        config: Config,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._tasks = tasks
        self._observer = observer
        self._generation = generation
        self._files = files
        self._deadline_seconds = config.tasks.deadline_seconds
        self._max_attempts = config.tasks.attempts
        self._beat_seconds = min(HEARTBEAT_SECONDS, config.tasks.lease_seconds / 4)

    def run(self, task: Task, stopping: threading.Event) -> None:
        """Bring a claimed task to its end; give it back when `stopping` is set. Raises nothing."""
        with log_lines_of(task.id), self._observer.task(task.id, task.attempts, task.command.get(TRACE)):
            self._run(task, stopping)

    def _run(self, task: Task, stopping: threading.Event) -> None:
        file: GeneratedFile | None = None
        with Heartbeat(self._tasks, task, self._beat_seconds, stopping) as heartbeat:
            try:
                file = self._generate(task, heartbeat)
                result = result_of(file)
                is_kept = self._end("completed", lambda: self._tasks.complete(task, result), stopping)
            except Exception as error:  # noqa: BLE001 a task's worker answers for every error
                state, write = self._ending(task, error, heartbeat, stopping)
                is_kept = False
                self._end(state, write, stopping)
        if file is not None and not is_kept:
            self._settle(task, file.filename)

    def _generate(self, task: Task, heartbeat: Heartbeat) -> GeneratedFile:
        command = unpack(task.command, self._tasks.audio(task.id))
        waiter = Waiter(heartbeat.should_stop, self._deadline_seconds)
        return self._generation.generate_file(command, waiter, heartbeat.progress)

    def _ending(
        self, task: Task, error: Exception, heartbeat: Heartbeat, stopping: threading.Event
    ) -> tuple[State, Callable[[], bool]]:
        """Return the state that an error leads to, and what writes it; it changes nothing once the task is lost."""
        if isinstance(error, Canceled) and heartbeat.answer == "canceled":
            return "canceled", lambda: self._tasks.cancel(task)
        if isinstance(error, Canceled):
            return "queued", lambda: self._tasks.release(task, count_attempt=not stopping.is_set())
        if isinstance(error, (QueueFull, ShuttingDown)):
            return "queued", lambda: self._tasks.release(task, pause_seconds=ENGINE_PAUSE_SECONDS)
        if isinstance(error, Unavailable) and task.attempts < self._max_attempts:
            logger.warning("Task %s could not be worked and will be tried again: %s", task.id, error)
            pause_seconds = error.retry_after_seconds
            return "queued", lambda: self._tasks.release(task, pause_seconds=pause_seconds, count_attempt=True)
        if isinstance(error, AudioCraftError):
            logger.warning("Task %s failed: %s", task.id, error)
            message, code = error.message, error.code
        else:
            logger.error("Task %s failed.", task.id, exc_info=error)
            message, code = "The task failed because of an error in the server.", AudioCraftError.code
        return "failed", lambda: self._tasks.fail(task, message, code)

    def _end(self, state: State, write: Callable[[], bool], stopping: threading.Event) -> bool:
        """Write an outcome, and tell of a final one that counts."""
        is_kept = self._write(write, stopping)
        if is_kept and state in FINAL_STATES:
            self._observer.task_ended(state)
        return is_kept

    def _write(self, write: Callable[[], bool], stopping: threading.Event) -> bool:
        """Write the outcome; while the store has an outage, again and again until `stopping` is set."""
        while True:
            is_last = stopping.is_set()
            try:
                return write()
            except StorageUnavailable:
                if is_last:
                    return False
            stopping.wait(STORE_RETRY_SECONDS)

    def _settle(self, task: Task, filename: str) -> None:
        """Delete a result that came too late. It counts, though, when only the answer that said so was lost."""
        try:
            found = self._tasks.get(task.id)
            if found is not None and found.result is not None and found.result["filename"] == filename:
                self._observer.task_ended(found.state)
                return
            logger.info("The result of task %s came too late and is deleted.", task.id)
            self._files.delete(filename)
        except StorageUnavailable:
            logger.warning("%s is left to the store's sweep, unless it is a result.", filename)


class Heartbeat:
    """Keeps a claim alive from a thread of its own, writes the progress, and learns whether to go on."""

    def __init__(self, tasks: TaskStore, task: Task, seconds: float, stopping: threading.Event) -> None:
        self.answer: HeartbeatResponse = "held"
        self.progress = Progress()
        self._tasks = tasks
        self._task = task
        self._seconds = seconds
        self._stopping = stopping
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{task.id}", daemon=True)

    def should_stop(self) -> bool:
        """Say whether the task was canceled or lost, or the worker stops."""
        return self.answer != "held" or self._stopping.is_set()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while self.answer == "held" and not self._ended.wait(self._seconds):
            try:
                self.answer = self._tasks.heartbeat(self._task, *self.progress.frames)
            except StorageUnavailable:
                continue  # logged where it was raised; the lease may outlive the outage


def result_of(file: GeneratedFile) -> dict[str, Any]:
    """Return what a completed task answers as its `result`."""
    return {"success": True, "filename": file.filename, **file.recipe.to_dict()}
