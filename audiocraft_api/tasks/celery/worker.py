"""What a Celery worker does with a message: claim a task and run it. Knows the runner, but neither engine nor Celery.

Messages are not relied on. Every worker periodically compares the claimable tasks with the waiting messages and sends
the missing ones: the broker may have been emptied, a worker may have died or released tasks, a pause may have ended.
"""

from __future__ import annotations

import logging
import threading

from audiocraft_api.core.errors import StorageUnavailable, Unavailable
from audiocraft_api.tasks.celery.transport import CeleryTransport
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.tasks.worker import new_worker_id

SWEEP_LIMIT = 1000  # tasks examined and messages sent in one sweep

logger = logging.getLogger(__name__)


class CeleryWorker:
    """Runs tasks in the threads of Celery's pool, so that they share the engine's batches."""

    def __init__(
        self,
        tasks: RedisTaskStore,
        runner: TaskRunner,
        expiry: TaskExpiry,
        transport: CeleryTransport,
        *,
        lease_seconds: float,
        intervals: TaskIntervals = DEFAULT_INTERVALS,
    ) -> None:
        self._tasks = tasks
        self._runner = runner
        self._expiry = expiry
        self._transport = transport
        self._lease_seconds = lease_seconds
        self._intervals = intervals
        self._worker_id = new_worker_id()
        self._closing = threading.Event()  # claim no more tasks
        self._stopping = threading.Event()  # release the running tasks
        self._sweeper = threading.Thread(target=self._sweep, name="task-sweeper", daemon=True)

    def start(self) -> None:
        """Start sweeping."""
        self._sweeper.start()

    def run_task(self, task_id: str | None = None) -> None:
        """Claim and run a task, by default the next one; do nothing if another worker was faster."""
        if self._closing.is_set():
            return
        try:
            task = self._tasks.claim(self._worker_id, self._lease_seconds, task_id)
        except StorageUnavailable:
            return  # the store logged it; a sweep sends another message
        if task is not None:
            self._runner.run(task, self._stopping)

    def begin_stop(self, grace_seconds: float) -> None:
        """Claim no more tasks, and release those that still run after `grace_seconds`."""
        self._closing.set()
        timer = threading.Timer(grace_seconds, self._stopping.set)
        timer.daemon = True
        timer.start()

    def close(self, grace_seconds: float = 0.0) -> None:  # noqa: ARG002
        """Stop sweeping, and release the tasks that still run: Celery waited for them before it called this."""
        self._closing.set()
        self._stopping.set()
        self._sweeper.join(self._intervals.worker_stop)
        self._tasks.close()

    def _sweep(self) -> None:
        while not self._closing.wait(self._intervals.sweep):
            try:
                self._expiry.run_if_due()
                if num_claimable := self._tasks.num_claimable(SWEEP_LIMIT):
                    self._transport.announce_claimable(num_claimable - self._transport.num_waiting())
            except Unavailable:
                pass  # the next sweep may succeed
            except Exception:
                logger.exception("The sweep for tasks without a message failed.")
