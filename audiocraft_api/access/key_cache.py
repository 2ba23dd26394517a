"""What one process knows of the store's keys: all of them, in memory, never older than half a second.

So a look at a key costs no look at the store, however many unknown ones are tried, and what changes there holds here
within a second. Knows nothing of requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from audiocraft_api.access.api_key import ApiKey
from audiocraft_api.access.key_store import KeyStore
from audiocraft_api.core.errors import StorageUnavailable

FRESH_SECONDS = 0.5  # how long an answer of the store is believed, or its failure


class KeyCache:
    """The usable keys of a store. Thread-safe."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, ApiKey] = {}
        self._version: int | None = None  # None: nothing has been read yet
        self._had_keys = False
        self._read_at = self._failed_at = -FRESH_SECONDS
        self._failure = ""

    def get(self, key_id: str) -> ApiKey | None:
        """Return a key that is not revoked; it may have expired. Raises StorageUnavailable."""
        self._refresh()
        return self._keys.get(key_id)

    def any_key_created(self) -> bool:
        """Say whether a key has ever been created, even when all are revoked. Raises StorageUnavailable.

        Once true it stays so, even when the store is lost. While the store cannot be reached, one that had no key is
        believed to have none still: nothing was guarded by one.
        """
        if not self._had_keys:
            try:
                self._refresh()
            except StorageUnavailable:
                if self._version is None:
                    raise
        return self._had_keys

    def _refresh(self) -> None:
        if self._clock() - self._read_at < FRESH_SECONDS:
            return
        with self._lock:
            now = self._clock()
            if now - self._read_at < FRESH_SECONDS:  # another thread has done it meanwhile
                return
            if now - self._failed_at < FRESH_SECONDS:  # else every request would wait for it to fail
                raise StorageUnavailable(self._failure)
            try:
                version = self._store.version()  # before the keys: a change in between is then read again
                if version != self._version:
                    self._keys = {key.id: key for key in self._store.all() if key.revoked is None}
            except StorageUnavailable as error:
                self._failed_at, self._failure = self._clock(), error.message
                raise
            self._had_keys = self._had_keys or version > 0
            self._version, self._read_at = version, now
