"""Bounds how many request threads each kind of long request may hold, so that the others go on answering."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from audiocraft_api.config import Config
from audiocraft_api.errors import QueueFull


class Places:
    """Places for requests of one kind that hold a thread. Thread-safe."""

    def __init__(self, capacity: int, refusal: str) -> None:
        """`refusal` is the sentence of a request that finds no place, with a `{}` for the capacity."""
        self.capacity = capacity
        self._refusal = refusal
        self._places = threading.BoundedSemaphore(capacity)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Raises QueueFull at once when all are taken."""
        if not self._places.acquire(blocking=False):
            raise QueueFull(self._refusal.format(self.capacity))
        try:
            yield
        finally:
            self._places.release()


def waiters(config: Config) -> Places:
    """Return the places of requests that wait for audio."""
    capacity = config.max_synchronous_requests or min(config.threads // 4, config.max_waiting)
    return Places(capacity, "{} requests are already waiting for audio; try again shortly.")


def streams(config: Config) -> Places:
    """Return the places of answers that go on while something is made: audio streams, WebSockets, task events."""
    return Places(config.max_streams or config.threads // 4, "{} streams are already open; try again shortly.")
