"""The embedded worker: threads of the server's own process that claim tasks and run them side by side.

Side by side, so that tasks share the engine's batches with each other and with synchronous requests. Knows the runner
by `run` alone, and no engine.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time

from audiocraft_api.config import Config
from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import Task

POLL_SECONDS = 1.0  # for tasks of dead workers and ended pauses; new tasks wake the worker
STOP_SECONDS = 5.0  # for the threads to give their tasks back, after the grace

logger = logging.getLogger(__name__)


def new_worker_id() -> str:
    """Return a name that says where a worker runs, and that no other has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class TaskWorker:
    """Works the tasks of a store, `config.tasks.concurrency` at a time. Starts no thread before `start`."""

    def __init__(self, tasks: TaskStore, runner: TaskRunner, files: AudioStore, config: Config) -> None:
        self._tasks = tasks
        self._runner = runner
        self._concurrency = config.tasks.concurrency or config.engine.max_batch_requests
        self._lease_seconds = config.tasks.lease_seconds
        self._expiry = TaskExpiry(tasks, files, config)
        self._worker_id = new_worker_id()
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # one thread looks for work; the others work, or wait to look
        self._wake = threading.Event()
        self._closing = threading.Event()  # claim no more
        self._stopping = threading.Event()  # give back what runs
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start once, in the process that owns the engine; threads do not survive a fork. After `close`, do nothing."""
        with self._lock:
            if self._threads or self._closing.is_set():
                return
            for number in range(self._concurrency):
                thread = threading.Thread(target=self._work, name=f"task-worker-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def wake(self) -> None:
        """Look for work at once: there is a new task."""
        self._wake.set()

    def close(self, grace_seconds: float = 0.0) -> None:
        """Claim no more, let running tasks go on for `grace_seconds`, then put them back into the queue."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        self._join(grace_seconds)
        self._stopping.set()
        self._join(STOP_SECONDS)

    def _join(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                self._runner.run(task, self._stopping)
            except Exception:  # no thread to be had, say: the task comes again when its lease is over
                logger.exception("The task worker could not run task %s.", task.id)

    def _next(self) -> Task | None:
        """Wait for a task and claim it; None once the worker closes."""
        with self._turn:
            while not self._closing.is_set():
                try:
                    self._expiry.run()
                    if task := self._tasks.claim(self._worker_id, self._lease_seconds):
                        return task
                except StorageUnavailable:
                    pass  # logged where it was raised; the next round may succeed
                except Exception:
                    logger.exception("The task worker could not look for work.")
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
        return None
