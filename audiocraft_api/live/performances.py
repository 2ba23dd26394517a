"""Keeps performances in the store of audio files, so that they expire as audio does. Only their owner may read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from audiocraft_api.core.errors import NotFound
from audiocraft_api.storage.base import AudioStore, name_of

EXTENSION = "json"


class Performances:
    """The performances of one store. Thread-safe."""

    def __init__(self, store: AudioStore) -> None:
        self._store = store

    def save(self, performance_id: str, fields: Mapping[str, Any], owner: str | None) -> None:
        """Keep a performance under an ID that `new_stem` made. Raises StorageUnavailable."""
        self._store.save(json.dumps(fields).encode(), EXTENSION, owner, stem=performance_id)

    def load(self, performance_id: str, owner: str | None) -> dict[str, Any]:
        """Return the fields of a performance. Raises NotFound, StorageUnavailable."""
        try:
            opened = self._store.open(name_of(f"{performance_id}.{EXTENSION}", owner))
        except NotFound:
            raise NotFound("This performance does not exist, has expired, or belongs to another caller.") from None
        with opened.file as file:
            fields: dict[str, Any] = json.loads(file.read())
        return fields
