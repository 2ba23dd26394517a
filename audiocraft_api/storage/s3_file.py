"""A file of a store, read over the network in ranges: what is not asked for is not fetched, and little is held."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIN_READ_BYTES = 64 * 2**10  # players ask for a few bytes first, to see whether they may
MAX_READ_BYTES = 2**20


class RangedFile(io.RawIOBase):
    """Reads `fetch(start, end)` where it stands, in steps that grow while it reads on."""

    def __init__(self, fetch: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._position = 0
        self._step_bytes = MIN_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position; no earlier than the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        position = max(base + offset, 0)
        if position != self._position:
            self._position, self._step_bytes = position, MIN_READ_BYTES
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fetch a step, or what there is room for. Raises what `fetch` raises."""
        room = memoryview(buffer).cast("B")
        data = self._next(min(len(room), self._step_bytes))
        room[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Fetch the rest, in the largest steps. Raises what `fetch` raises."""
        return b"".join(iter(lambda: self._next(MAX_READ_BYTES), b""))

    def _next(self, num_bytes: int) -> bytes:
        end = min(self._position + num_bytes, self._size_bytes)
        data = self._fetch(self._position, end) if end > self._position else b""
        self._position += len(data)
        self._step_bytes = min(self._step_bytes * 4, MAX_READ_BYTES)
        return data
