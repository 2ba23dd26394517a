"""Counts queued and running tasks in the background, for `/health` and metrics, which must never wait for the store."""

from __future__ import annotations

import logging
import threading

from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.task import QueueStatus

logger = logging.getLogger(__name__)


class QueueMonitor:
    """A thread that queries the store every `intervals.monitor` seconds. `status` is its last result."""

    def __init__(self, tasks: TaskStore, intervals: TaskIntervals = DEFAULT_INTERVALS) -> None:
        self.status = QueueStatus(0, 0, None)
        self._tasks = tasks
        self._seconds = intervals.monitor
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread once, after any fork. Does nothing when called again or after `close`."""
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
                pass  # the store logged it; the last status stays
            except Exception:
                logger.exception("The queued tasks could not be counted.")
            self._closing.wait(self._seconds)
