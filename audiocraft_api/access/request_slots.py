"""Bounds how many request threads may wait for a generation, so that the others go on answering."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from audiocraft_api.config import Config
from audiocraft_api.core.errors import QueueFull


class RequestSlots:
    """Places for requests that hold a thread while they wait. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self.capacity = config.server.max_synchronous_requests or min(
            config.server.threads // 4, config.engine.max_waiting
        )
        self.num_waiting = 0
        self._lock = threading.Lock()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold a place. Raises QueueFull at once when all are taken."""
        with self._lock:
            if self.num_waiting >= self.capacity:
                raise QueueFull(f"{self.capacity} requests are already waiting for audio; try again shortly.")
            self.num_waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self.num_waiting -= 1
