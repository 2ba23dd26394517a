"""A remote file that is read in ranges. Fetches little more than the bytes that are read, and buffers little."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIN_READ_BYTES = 64 * 2**10  # players probe with a few bytes first
MAX_READ_BYTES = 2**20


class RangedFile(io.RawIOBase):
    """Reads a file through `fetch(start, end)`, in blocks that grow while the file is read sequentially."""

    def __init__(self, fetch: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._position = 0
        self._block_bytes = MIN_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position, at least 0."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        position = max(base + offset, 0)
        if position != self._position:
            self._position, self._block_bytes = position, MIN_READ_BYTES
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fetch one block, or as many bytes as fit. Raises the exceptions of `fetch`."""
        room = memoryview(buffer).cast("B")
        data = self._read_block(min(len(room), self._block_bytes))
        room[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Fetch the rest in blocks of maximum size. Raises the exceptions of `fetch`."""
        return b"".join(iter(lambda: self._read_block(MAX_READ_BYTES), b""))

    def _read_block(self, num_bytes: int) -> bytes:
        end = min(self._position + num_bytes, self._size_bytes)
        data = self._fetch(self._position, end) if end > self._position else b""
        self._position += len(data)
        self._block_bytes = min(self._block_bytes * 4, MAX_READ_BYTES)
        return data
