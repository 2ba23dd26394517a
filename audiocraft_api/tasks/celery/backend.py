"""Tasks that Celery workers run: the parts of a server that accepts and watches them, and works none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from audiocraft_api.config import Config
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.celery.remote import RemoteGeneration
from audiocraft_api.tasks.celery.transport import CeleryTransport, create_celery
from audiocraft_api.tasks.monitor import QueueMonitor
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.webhooks import WebhookSender


class CeleryBackend:
    """A `TaskBackend` over a store that the workers share; and what stands for their engines here."""

    def __init__(
        self,
        store: TaskStore,
        files: AudioStore,
        config: Config,
        render: Callable[[Task], dict[str, Any]],
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._store = store
        self._transport = CeleryTransport(create_celery(config))
        self.service = TaskService(store, config, self._announce, observer)
        self.webhooks = WebhookSender(store, render, config, observer)
        self.monitor = QueueMonitor(store)
        waited_for = TaskService(store, config, self._announce_waited_for, observer)
        self.generation = RemoteGeneration(waited_for, files)

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
        self.start()  # under a server that has not called it
        self._transport.announce(task)

    def _announce_waited_for(self, task: Task) -> None:
        self.start()
        self._transport.enqueue_interactive(task)
