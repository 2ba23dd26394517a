"""The embedded worker: threads of the server's own process that claim tasks and run them concurrently.

They run concurrently so that the engine batches tasks with each other and with synchronous requests. Knows the runner,
but no engine.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time

from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import Task

logger = logging.getLogger(__name__)


def new_worker_id() -> str:
    """Return a unique name that says where a worker runs."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class TaskWorker:
    """Runs the tasks of a store, up to `concurrency` at a time. Starts no thread before `start`."""

    def __init__(
        self,
        tasks: TaskStore,
        runner: TaskRunner,
        expiry: TaskExpiry,
        *,
        concurrency: int,
        lease_seconds: float,
        intervals: TaskIntervals = DEFAULT_INTERVALS,
    ) -> None:
        self._tasks = tasks
        self._runner = runner
        self._expiry = expiry
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds
        self._intervals = intervals
        self._worker_id = new_worker_id()
        self._lock = threading.Lock()
        self._claiming = threading.Lock()  # one thread at a time looks for work; the others run tasks or wait
        self._wake = threading.Event()
        self._closing = threading.Event()  # claim no more tasks
        self._stopping = threading.Event()  # release the running tasks
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads once, after any fork. Does nothing when called again or after `close`."""
        with self._lock:
            if self._threads or self._closing.is_set():
                return
            for number in range(self._concurrency):
                thread = threading.Thread(target=self._work, name=f"task-worker-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def wake(self) -> None:
        """Look for work at once, because a task was submitted."""
        self._wake.set()

    def close(self, grace_seconds: float = 0.0) -> None:
        """Stop claiming, let running tasks finish for `grace_seconds`, then release the rest to the queue."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        self._join(grace_seconds)
        self._stopping.set()
        self._join(self._intervals.worker_stop)

    def _join(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while (task := self._wait_for_task()) is not None:
            try:
                self._runner.run(task, self._stopping)
            except Exception:  # for example, no thread could be started; the task is claimable when its lease ends
                logger.exception("The task worker could not run task %s.", task.id)

    def _wait_for_task(self) -> Task | None:
        """Wait for a task and claim it; return None once the worker closes."""
        with self._claiming:
            while not self._closing.is_set():
                try:
                    self._expiry.run_if_due()
                    if task := self._tasks.claim(self._worker_id, self._lease_seconds):
                        return task
                except StorageUnavailable:
                    pass  # the store logged it; try again
                except Exception:
                    logger.exception("The task worker could not look for work.")
                self._wake.wait(self._intervals.worker_poll)
                self._wake.clear()
        return None
