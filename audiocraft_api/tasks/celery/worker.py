"""What a Celery worker does with messages: claim a task and run it. Knows the engine by the runner, Celery by nothing.

Messages are not trusted to be there: every worker sweeps, and where fewer messages wait than tasks that nobody holds
(the broker was emptied, a worker died or gave tasks back, a pause is over), it sends as many as are lacking.
"""

from __future__ import annotations

import logging
import threading

from audiocraft_api.config import Config
from audiocraft_api.core.errors import StorageUnavailable, Unavailable
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.celery.transport import CeleryTransport
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.tasks.worker import new_worker_id

SWEEP_SECONDS = 2.0  # so that a task runs again within its lease and 5 s
STOP_SECONDS = 5.0
SWEEP_LIMIT = 1000  # messages sent at once, and tasks looked at

logger = logging.getLogger(__name__)


class CeleryWorker:
    """Runs tasks in the threads of Celery's pool, so that they share the engine's batches."""

    def __init__(
        self,
        tasks: RedisTaskStore,
        runner: TaskRunner,
        files: AudioStore,
        transport: CeleryTransport,
        config: Config,
    ) -> None:
        self._tasks = tasks
        self._runner = runner
        self._transport = transport
        self._expiry = TaskExpiry(tasks, files, config)
        self._lease_seconds = config.tasks.lease_seconds
        self._worker_id = new_worker_id()
        self._closing = threading.Event()  # sweep and claim no more
        self._stopping = threading.Event()  # give back what runs
        self._sweeper = threading.Thread(target=self._sweep, name="task-sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._sweeper.start()

    def run(self, task_id: str | None = None) -> None:
        """Run a certain task, or the oldest that nobody holds; nothing when somebody else was quicker."""
        if self._closing.is_set():
            return
        try:
            task = self._tasks.claim(self._worker_id, self._lease_seconds, task_id)
        except StorageUnavailable:
            return  # logged where it was raised; the sweep sends another message
        if task is not None:
            self._runner.run(task, self._stopping)

    def begin_stop(self, grace_seconds: float) -> None:
        """Claim no more; have what still runs after `grace_seconds` given back."""
        self._closing.set()
        timer = threading.Timer(grace_seconds, self._stopping.set)
        timer.daemon = True
        timer.start()

    def close(self, grace_seconds: float = 0.0) -> None:  # noqa: ARG002
        """Stop sweeping and put back the tasks that still run: Celery has waited for them before it calls this."""
        self._closing.set()
        self._stopping.set()
        self._sweeper.join(STOP_SECONDS)
        self._tasks.close()

    def _sweep(self) -> None:
        while not self._closing.wait(SWEEP_SECONDS):
            try:
                self._expiry.run()
                if num_unheld := self._tasks.num_unheld(SWEEP_LIMIT):
                    self._transport.announce_some(num_unheld - self._transport.num_waiting())
            except Unavailable:
                pass  # the next round may succeed
            except Exception:
                logger.exception("The sweep for forgotten tasks failed.")
