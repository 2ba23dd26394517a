"""Periodically calls the sweep of a store in a thread of its own. Knows nothing of stores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from audiocraft_api.core.errors import StorageUnavailable

CLOSE_SECONDS = 2.0  # a stopping server does not wait for a store that hangs

logger = logging.getLogger(__name__)


class Sweeper:
    """Calls `sweep` immediately and then every `interval_seconds`, from `start` until `close`."""

    def __init__(self, sweep: Callable[[], int], interval_seconds: float) -> None:
        self._sweep = sweep
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Start the thread, unless it was started or closed."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="audio-sweeper", daemon=True)
                self._thread.start()

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Stop the thread. A sweep that is still running after `timeout_seconds` is abandoned."""
        with self._lock:
            self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def _run(self) -> None:
        while True:
            try:
                num_deleted = self._sweep()
                if num_deleted:
                    logger.info("Swept %d audio files.", num_deleted)
            except StorageUnavailable:
                pass  # logged where it was raised; the next sweep may succeed
            if self._closed.wait(self._interval_seconds):
                return
