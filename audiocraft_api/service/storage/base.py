"""The interface that every store of finished audio fills. The service and the routes know stores only through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class StoredAudio:
    """A file in a store. It never changes after `save`, so `etag` stands for its content."""

    filename: str
    size_bytes: int
    modified_at: float  # seconds since the epoch
    etag: str  # without quotes


@dataclass(frozen=True, eq=False)
class OpenAudio:
    """A file that is being read. It is leased until `file` is closed: no sweep deletes it."""

    audio: StoredAudio
    file: BinaryIO  # at its start, seekable


class AudioStore(Protocol):
    """Keeps finished audio under names that it makes up. Thread-safe."""

    def save(self, audio: bytes, extension: str) -> StoredAudio:
        """Keep `audio` under a new name that ends in `extension` (no dot).

        The file appears whole or not at all. Raises StorageUnavailable.
        """

    def open(self, filename: str) -> OpenAudio:
        """Open a file for reading; the caller closes it.

        Raises NotFound for every name that this store has not made or no longer has, StorageUnavailable when the
        store does not answer.
        """

    def url_for(self, filename: str) -> str:
        """Return the address that a client fetches the file from."""

    def delete(self, filename: str) -> None:
        """Delete a file, leased or not; one that is not there is no error. Raises StorageUnavailable."""

    def sweep(self) -> int:
        """Delete what is too old or too much, except leased files, and return how many. Raises StorageUnavailable."""

    def close(self) -> None:
        """Stop the store's own threads. Files stay."""
