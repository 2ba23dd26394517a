"""Knows how many tasks wait, to within a second, without asking the store: for answers that must never wait on it."""

from __future__ import annotations

import logging
import threading

from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import QueueStatus

REFRESH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class QueueMonitor:
    """A thread that looks at the queue every second. `status` is what it last saw."""

    def __init__(self, tasks: TaskStore) -> None:
        self.status = QueueStatus(0, 0, None)
        self._tasks = tasks
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start once; threads do not survive a fork. After `close`, do nothing."""
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._watch, name="task-monitor", daemon=True)
                self._thread.start()

    def close(self) -> None:
        with self._lock:
            self._closing.set()

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                self.status = self._tasks.status()
            except StorageUnavailable:
                pass  # logged where it was raised; the last numbers stand
            except Exception:
                logger.exception("The queue could not be counted.")
            self._closing.wait(REFRESH_SECONDS)
