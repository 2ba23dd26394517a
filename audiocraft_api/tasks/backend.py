"""Puts the parts of tasks together for one process: who accepts, works, watches and tells them.

Everything is made at once and starts later: threads do not survive a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from audiocraft_api.config import Config
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.monitor import QueueMonitor
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.webhooks import WebhookSender
from audiocraft_api.tasks.worker import TaskWorker


class TaskBackend(Protocol):
    """What the server knows of tasks, whoever works them."""

    service: TaskService
    webhooks: WebhookSender
    monitor: QueueMonitor

    def start(self) -> None:
        """Start what runs in this process. Called again, or after `close`, do nothing."""

    def close(self, grace_seconds: float = 0.0) -> None:
        """Let tasks that run here go on for `grace_seconds`, give back the rest, and end everything."""


class EmbeddedBackend:
    """Tasks that the server works itself. `render` says what a webhook is told of a task."""

    def __init__(
        self,
        store: TaskStore,
        generation: GenerationService,
        files: AudioStore,
        config: Config,
        render: Callable[[Task], dict[str, Any]],
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._store = store
        self._worker = TaskWorker(store, TaskRunner(store, generation, files, config, observer), files, config)
        self.service = TaskService(store, config, self._announce, observer)
        self.webhooks = WebhookSender(store, render, config, observer)
        self.monitor = QueueMonitor(store)

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
        self.start()  # under a server that has not called it
        self._worker.wake()
