"""The interface that every store of finished audio fills. The service and the routes know stores only through it.

A filename is `<uuid>.<extension>`, and `<owner>/<uuid>.<extension>` for audio that is an owner's alone. Links hold its
last part: whose folder it lies in, the caller's key says.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import BinaryIO, Protocol

OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A version 4 UUID and an extension, maybe in an owner's folder: a name of any other shape never reaches a store.
LINK = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.[a-z0-9]{1,8}")
# Of files wherever they are fetched from: they never change.
CACHE_CONTROL = "private, max-age=31536000, immutable"
FILENAME = re.compile(rf"({OWNER.pattern}/)?{LINK.pattern}")


def new_filename(extension: str, owner: str | None) -> str:
    """Make up a name. Raises ValueError for an extension or an owner that no name can hold."""
    filename = name_of(f"{uuid.uuid4()}.{extension}", owner)
    if not FILENAME.fullmatch(filename):
        raise ValueError(f"{extension!r} is not a file name extension, or {owner!r} is not an owner")
    return filename


def name_of(link: str, owner: str | None) -> str:
    """Return the filename that a link's last part stands for when `owner` asks."""
    return link if owner is None else f"{owner}/{link}"


def link_of(filename: str) -> str:
    """Return what a link holds of a filename."""
    return filename.rpartition("/")[2]


@dataclass(frozen=True)
class StoredAudio:
    """A file in a store. It never changes after `save`, so `etag` stands for its content."""

    filename: str
    size_bytes: int
    modified_at: float  # seconds since the epoch
    etag: str  # without quotes


@dataclass(frozen=True, eq=False)
class OpenAudio:
    """A file that is being read. No sweep deletes it until `file` is closed, or, in a store of many servers, for an hour."""

    audio: StoredAudio
    file: BinaryIO  # at its start, seekable
    is_remote: bool = False  # it is fetched while it is read: reading raises NotFound, StorageUnavailable


class AudioStore(Protocol):
    """Keeps finished audio under names that it makes up. Thread-safe."""

    def save(self, audio: bytes, extension: str, owner: str | None = None) -> StoredAudio:
        """Keep `audio` under a new name that ends in `extension` (no dot), for everybody or for an owner alone.

        The file appears whole or not at all. Raises StorageUnavailable.
        """

    def copy(self, filename: str, owner: str | None = None) -> StoredAudio:
        """Keep a file's audio once more, under a new name that ends alike, for everybody or for an owner alone.

        The copy is as old as it is, and neither file's end is the other's. It appears whole or not at all. Raises
        NotFound when there is no such file (any more), StorageUnavailable.
        """

    def open(self, filename: str) -> OpenAudio:
        """Open a file for reading; the caller closes it.

        Raises NotFound for every name that this store has not made or no longer has, StorageUnavailable when the
        store does not answer.
        """

    def url_for(self, filename: str) -> str:
        """Return the address that a client fetches the file from, on this server."""

    def redirect_for(self, filename: str, *, is_head: bool = False) -> str | None:
        """Return where else a client may fetch (or ask about) the file for a short while; None: only here, by `open`.

        Raises NotFound, StorageUnavailable.
        """

    def delete(self, filename: str) -> None:
        """Delete a file, whoever reads it; one that is not there is no error. Raises StorageUnavailable."""

    def sweep(self) -> int:
        """Delete what is too old or too much, except files being read, and return how many. Raises StorageUnavailable."""

    def close(self) -> None:
        """Stop the store's own threads. Files stay."""
