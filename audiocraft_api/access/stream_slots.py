"""Bounds the number of threads that serve streams, and aborts the remaining streams when the server stops."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from audiocraft_api.config.server import ServerSettings
from audiocraft_api.core.errors import ShuttingDown, TooManyStreams

# How long a stopping server lets streams send their last message.
CLOSE_SECONDS = 2.0


class StreamSlots:
    """Slots for long responses: audio streams, WebSockets and task events. Thread-safe."""

    def __init__(self, config: ServerSettings) -> None:
        self.capacity = config.max_streams or config.threads // 4
        self._condition = threading.Condition()
        self._open: set[StreamSlot] = set()
        self._closed = False

    @property
    def num_open(self) -> int:
        return len(self._open)

    def acquire(self, connection: socket.socket | None) -> StreamSlot:
        """Occupy a slot; `abort` shuts down `connection`.

        Raises TooManyStreams immediately if no slot is free; ShuttingDown.
        """
        with self._condition:
            if self._closed:
                raise ShuttingDown
            if len(self._open) >= self.capacity:
                raise TooManyStreams(f"{self.capacity} streams are already open. Try again shortly.")
            slot = StreamSlot(self, connection)
            self._open.add(slot)
        return slot

    def release(self, slot: StreamSlot) -> None:
        with self._condition:
            self._open.discard(slot)
            self._condition.notify_all()

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Refuse new streams, wait for open streams to end, and abort those still open after the timeout."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._open, timeout_seconds)
            for slot in self._open:
                slot.abort()


class StreamSlot:
    """An occupied slot. `release` is idempotent."""

    def __init__(self, streams: StreamSlots, connection: socket.socket | None) -> None:
        self._streams = streams
        self._connection = connection

    def release(self) -> None:
        self._streams.release(self)

    def abort(self) -> None:
        """Shut down the connection, which wakes a thread that is blocked by a slow client."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
