"""Sweeps a store again and again, in a thread of its own. Knows neither what is swept nor where."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from audiocraft_api.core.errors import StorageUnavailable

CLOSE_SECONDS = 2.0  # a stop does not wait for a store that does not answer

logger = logging.getLogger(__name__)


class Sweeper:
    """Calls `sweep` at once and then every `interval_seconds`, from `start` until `close`."""

    def __init__(self, sweep: Callable[[], int], interval_seconds: float) -> None:
        self._sweep = sweep
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Start, unless it has started or is closed."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="audio-sweeper", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop; a round that runs is left to itself after a while."""
        with self._lock:
            self._closed.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

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
                pass  # logged where it was raised; the next round may succeed
            if self._closed.wait(self._interval_seconds):
                return
