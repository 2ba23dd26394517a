"""The interface of stores of audio files. Services and routes use stores only through this interface.

A filename is `<uuid>.<extension>`, or `<owner>/<uuid>.<extension>` for audio that only its owner may access. Links
contain only the last part; the caller's key determines the owner.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import BinaryIO, Protocol

OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A version 4 UUID and an extension. Other names are rejected before a store is accessed.
LINK = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.[a-z0-9]{1,8}")
# For every download: clients may cache forever because files never change.
CACHE_CONTROL = "private, max-age=31536000, immutable"
FILENAME = re.compile(rf"({OWNER.pattern}/)?{LINK.pattern}")
# Codes are stored beside their file. Their name is no filename, so that no route serves them.
CODES_SUFFIX = ".codes"
MAX_CODES_BYTES = 2**20  # 330 seconds of stereo have a quarter of that


def new_stem() -> str:
    """Return the part before the extension of a new, random filename."""
    return str(uuid.uuid4())


def new_filename(extension: str, owner: str | None, stem: str | None = None) -> str:
    """Return a new filename, random without a `stem`. Raises ValueError for an invalid extension, owner or stem."""
    filename = name_of(f"{stem or new_stem()}.{extension}", owner)
    if not FILENAME.fullmatch(filename):
        raise ValueError(f"{extension!r} is not a file name extension, {owner!r} not an owner, or {stem!r} not a stem")
    return filename


def name_of(link: str, owner: str | None) -> str:
    """Return the filename for the last part of a link that `owner` requests."""
    return link if owner is None else f"{owner}/{link}"


def link_of(filename: str) -> str:
    """Return the part of a filename that links contain."""
    return filename.rpartition("/")[2]


@dataclass(frozen=True)
class StoredAudio:
    """A file in a store. It never changes after `save`, so `etag` identifies its content."""

    filename: str
    size_bytes: int
    modified_at: float  # seconds since the epoch
    etag: str  # without quotes


@dataclass(frozen=True, eq=False)
class OpenAudio:
    """An open file. A local store does not sweep it while `file` is open; a shared store keeps it for one hour."""

    audio: StoredAudio
    file: BinaryIO  # seekable, positioned at the start
    is_remote: bool = False  # fetched while it is read: reading raises NotFound, StorageUnavailable


class AudioStore(Protocol):
    """Stores audio files under names that it generates. Thread-safe."""

    def save(
        self,
        audio: bytes,
        extension: str,
        owner: str | None = None,
        codes: bytes | None = None,
        stem: str | None = None,
    ) -> StoredAudio:
        """Store `audio` under a new name with this extension (without a dot), for one owner or for everyone (None).

        `codes` are stored beside it, and deleted with it. If only they cannot be stored, that is logged. `stem` is a
        part of the name that `new_stem` made before. Atomic.
        Raises StorageUnavailable.
        """

    def open(self, filename: str) -> OpenAudio:
        """Open a file; the caller must close it. Raises NotFound (also for invalid names), StorageUnavailable."""

    def codes_of(self, filename: str) -> bytes | None:
        """Return the codes that were saved with a file; None without any. Raises StorageUnavailable."""

    def find(self, extension: str, owner: str | None) -> list[StoredAudio]:
        """Return the files of one owner, or of everyone (None), with this extension, newest first.

        Raises StorageUnavailable.
        """

    def url_for(self, filename: str) -> str:
        """Return the path on this server from which clients download the file."""

    def redirect_for(self, filename: str, *, is_head: bool = False) -> str | None:
        """Return a temporary URL of the file in the store, for GET or HEAD; None if this server must send the file.

        Raises NotFound, StorageUnavailable.
        """

    def delete(self, filename: str) -> None:
        """Delete a file, even while it is read. Deleting a missing file is not an error. Raises StorageUnavailable."""

    def sweep(self) -> int:
        """Delete files beyond the maximum age or total size, except open files. Return the number of deleted files.

        Raises StorageUnavailable.
        """

    def close(self) -> None:
        """Stop the threads of the store. Files are kept."""
