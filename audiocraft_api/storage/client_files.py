"""Keeps files that clients upload for later requests, in the store of audio files, so that they expire as audio does.

A stored file begins with one line of JSON that describes it; what the client sent follows. Only its owner may use it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

from audiocraft_api.config import Config
from audiocraft_api.core.errors import LimitExceeded, NotFound
from audiocraft_api.storage.base import AudioStore, StoredAudio, link_of, name_of

EXTENSION = "upload"
MAX_HEADER_BYTES = 16 * 2**10


@dataclass(frozen=True)
class ClientFile:
    """A file of a client."""

    id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    metadata: dict[str, Any]
    created: float  # seconds since the epoch, as `expires`
    expires: float | None


class ClientFiles:
    """The files of clients. Thread-safe."""

    def __init__(self, store: AudioStore, config: Config) -> None:
        self._store = store
        self._max_files = config.compat.compat_max_files
        self._max_age_seconds = config.storage.max_age_seconds

    def save(
        self, content: bytes, name: str, media_type: str, metadata: dict[str, Any], owner: str | None
    ) -> ClientFile:
        """Keep a file. Uploads at the same time may exceed the maximum by their number.

        Raises LimitExceeded, StorageUnavailable.
        """
        if len(self._store.find(EXTENSION, owner)) >= self._max_files:
            raise LimitExceeded(
                f"There can be {self._max_files} files at a time. Delete some, or wait until they expire.", 3600.0
            )
        about = {"name": name, "media_type": media_type, "sha256": hashlib.sha256(content).hexdigest()}
        header = json.dumps(about | {"metadata": metadata}).encode()
        stored = self._store.save(header + b"\n" + content, EXTENSION, owner)
        return self._described(stored, header)

    def list(self, owner: str | None) -> list[ClientFile]:
        """Return the files of an owner, newest first. Raises StorageUnavailable."""
        found = []
        for stored in self._store.find(EXTENSION, owner)[: self._max_files]:
            try:
                found.append(self.get(_id_of(stored), owner))
            except NotFound:  # deleted in the meantime
                continue
        return found

    def get(self, file_id: str, owner: str | None) -> ClientFile:
        """Describe a file. Raises NotFound, StorageUnavailable."""
        about, file = self.open(file_id, owner)
        file.close()
        return about

    def open(self, file_id: str, owner: str | None) -> tuple[ClientFile, BinaryIO]:
        """Describe a file and open it where its content begins. Raises NotFound, StorageUnavailable."""
        try:
            opened = self._store.open(name_of(f"{file_id}.{EXTENSION}", owner))
        except NotFound:
            raise NotFound("This file does not exist, has expired, or belongs to another caller.") from None
        try:
            return self._described(opened.audio, opened.file.readline(MAX_HEADER_BYTES).rstrip(b"\n")), opened.file
        except BaseException:
            opened.file.close()
            raise

    def delete(self, file_id: str, owner: str | None) -> None:
        """Delete a file. Raises NotFound, StorageUnavailable."""
        self.get(file_id, owner)
        self._store.delete(name_of(f"{file_id}.{EXTENSION}", owner))

    def _described(self, stored: StoredAudio, header: bytes) -> ClientFile:
        expires = stored.modified_at + self._max_age_seconds if self._max_age_seconds else None
        return ClientFile(
            id=_id_of(stored),
            size_bytes=stored.size_bytes - len(header) - 1,
            created=stored.modified_at,
            expires=expires,
            **json.loads(header),
        )


def _id_of(stored: StoredAudio) -> str:
    return link_of(stored.filename).removesuffix(f".{EXTENSION}")
