"""Tasks that Celery workers run: the parts of a server that accepts and watches tasks, but runs none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from audiocraft_api.config import Config
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.celery.remote import RemoteGeneration
from audiocraft_api.tasks.celery.transport import CeleryTransport, create_celery
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.monitor import QueueMonitor
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.webhooks import WebhookSender


class CeleryBackend:
    """A `TaskBackend` over the store that the workers share, with `engine` and `generation` in place of local ones."""

    def __init__(
        self,
        store: TaskStore,
        files: AudioStore,
        config: Config,
        render: Callable[[Task], dict[str, Any]],
        observer: Observer = NULL_OBSERVER,
        intervals: TaskIntervals = DEFAULT_INTERVALS,
    ) -> None:
        self._store = store
        self._transport = CeleryTransport(create_celery(config))
        self.service = TaskService(store, config.tasks, self._announce, observer)
        self.webhooks = WebhookSender(store, render, config.webhooks, observer, intervals)
        self.monitor = QueueMonitor(store, intervals)
        interactive = TaskService(store, config.tasks, self._announce_interactive, observer)
        self.generation = RemoteGeneration(interactive, files)

    def start(self) -> None:
        self.monitor.start()
        self.webhooks.start()

    def close(self, grace_seconds: float = 0.0) -> None:
        self.generation.close(grace_seconds)
        self._transport.close()
        self.webhooks.close()
        self.monitor.close()
        self._store.close()

    def _announce(self, task: Task) -> None:
        self.start()  # in case the server that runs this app did not
        self._transport.announce(task)

    def _announce_interactive(self, task: Task) -> None:
        self.start()
        self._transport.enqueue_interactive(task)
