"""Bounds the number of threads that wait for a generation, so that other requests are still served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from audiocraft_api.config.server import ServerSettings
from audiocraft_api.core.errors import QueueFull


class RequestSlots:
    """Slots for requests that occupy a thread while they wait. Thread-safe."""

    def __init__(self, config: ServerSettings, max_waiting: int) -> None:
        """`max_waiting` is the capacity of the engine's queue."""
        self.capacity = config.max_synchronous_requests or min(config.threads // 4, max_waiting)
        self.num_waiting = 0
        self._lock = threading.Lock()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Occupy a slot during the block. Raises QueueFull immediately if no slot is free."""
        with self._lock:
            if self.num_waiting >= self.capacity:
                raise QueueFull(f"{self.capacity} requests are already waiting for audio. Try again shortly.")
            self.num_waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self.num_waiting -= 1
