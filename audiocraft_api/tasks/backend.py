"""The parts of tasks that one server process owns: accepting, running, counting, and delivering webhooks.

They are built at once and started later, because threads do not survive a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from audiocraft_api.config import Config
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.monitor import QueueMonitor
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.webhooks import WebhookSender
from audiocraft_api.tasks.worker import TaskWorker


class TaskBackend(Protocol):
    """What a server knows of tasks, whether it runs them itself or Celery workers do."""

    service: TaskService
    webhooks: WebhookSender
    monitor: QueueMonitor

    def start(self) -> None:
        """Start the threads of this process. Does nothing when called again or after `close`."""

    def close(self, grace_seconds: float = 0.0) -> None:
        """Let tasks that run in this process finish for `grace_seconds`, release the rest, and close everything."""


class EmbeddedBackend:
    """Tasks that the server runs itself. `render` returns the body of a task's webhook."""

    def __init__(
        self,
        store: TaskStore,
        generation: GenerationService,
        files: AudioStore,
        config: Config,
        render: Callable[[Task], dict[str, Any]],
        observer: Observer = NULL_OBSERVER,
        intervals: TaskIntervals = DEFAULT_INTERVALS,
    ) -> None:
        self._store = store
        self._worker = TaskWorker(
            store,
            TaskRunner(store, generation, files, config.tasks, observer, intervals),
            TaskExpiry(store, files, config.tasks, intervals),
            concurrency=config.tasks.concurrency or config.engine.max_batch_requests,
            lease_seconds=config.tasks.lease_seconds,
            intervals=intervals,
        )
        self.service = TaskService(store, config.tasks, self._announce, observer)
        self.webhooks = WebhookSender(store, render, config.webhooks, observer, intervals)
        self.monitor = QueueMonitor(store, intervals)

    def start(self) -> None:
        self._worker.start()
        self.monitor.start()
        self.webhooks.start()

    def close(self, grace_seconds: float = 0.0) -> None:
        self._worker.close(grace_seconds)
        self.webhooks.close()
        self.monitor.close()
        self._store.close()

    def _announce(self, _task: Task) -> None:
        self.start()  # in case the server that runs this app did not
        self._worker.wake()
