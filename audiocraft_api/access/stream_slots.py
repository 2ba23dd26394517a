"""Bounds how many streams may hold a thread, and ends those that are left when the server stops. Thread-safe."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ShuttingDown, TooManyStreams

# How long a stream whose generation has ended may go on to tell so, when the server stops.
FAREWELL_SECONDS = 2.0


class StreamSlots:
    """StreamSlots for answers that go on while something is made: audio streams, WebSockets, task events."""

    def __init__(self, config: Config) -> None:
        self.capacity = config.server.max_streams or config.server.threads // 4
        self._condition = threading.Condition()
        self._open: set[StreamSlot] = set()
        self._closed = False

    @property
    def num_open(self) -> int:
        return len(self._open)

    def acquire(self, connection: socket.socket | None) -> StreamSlot:
        """Take a place for a request's connection, if it is known. Raises TooManyStreams at once when there is none."""
        with self._condition:
            if self._closed:
                raise ShuttingDown
            if len(self._open) >= self.capacity:
                raise TooManyStreams(f"{self.capacity} streams are open already; try again shortly.")
            place = StreamSlot(self, connection)
            self._open.add(place)
        return place

    def release(self, place: StreamSlot) -> None:
        with self._condition:
            self._open.discard(place)
            self._condition.notify_all()

    def close(self, farewell_seconds: float = FAREWELL_SECONDS) -> None:
        """Take no more, wait for those that end by themselves, and cut the connections of the others."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._open, farewell_seconds)
            for place in self._open:
                place.abort()


class StreamSlot:
    """One of the places; `release` it once or more."""

    def __init__(self, streams: StreamSlots, connection: socket.socket | None) -> None:
        self._streams = streams
        self._connection = connection

    def release(self) -> None:
        self._streams.release(self)

    def abort(self) -> None:
        """Wake the thread that waits for a slow listener."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
