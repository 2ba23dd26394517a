"""An in-memory copy of the key store, at most half a second old. Knows nothing of requests.

Lookups read this copy, so clients that try many unknown keys put no load on the store. A change to the store takes
effect within a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from audiocraft_api.access.api_key import ApiKey
from audiocraft_api.access.key_store import KeyStore
from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer

FRESH_SECONDS = 0.5  # how long a copy of the store, or a failure to read it, is reused


class KeyCache:
    """The usable keys of a store. Thread-safe."""

    def __init__(
        self, store: KeyStore, clock: Callable[[], float] = time.monotonic, observer: Observer = NULL_OBSERVER
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._lock = threading.Lock()
        self._keys: dict[str, ApiKey] = {}
        self._version: int | None = None  # None: nothing has been read yet
        self._had_keys = False
        self._read_at = self._failed_at = -FRESH_SECONDS
        self._failure = ""

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key with this id unless it was revoked; it may have expired. Raises StorageUnavailable."""
        self._refresh()
        return self._keys.get(key_id)

    def any_key_created(self) -> bool:
        """Return whether any key was ever created, even if all are revoked. Raises StorageUnavailable.

        Once true, the result stays true even when the store is lost. If the store had no keys when it was last read and
        is now unreachable, the result is still false: no data was protected by a key.
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
            if now - self._read_at < FRESH_SECONDS:  # another thread has just refreshed
                return
            if now - self._failed_at < FRESH_SECONDS:  # otherwise each request would wait until reading fails
                raise StorageUnavailable(self._failure)
            try:
                # Read before the keys, so that the next refresh notices a change in between.
                version = self._store.version()
                if version != self._version:
                    self._keys = {key.id: key for key in self._store.all() if key.revoked is None}
            except StorageUnavailable as error:
                self._observer.storage_failed("keys")
                self._failed_at, self._failure = self._clock(), error.message
                raise
            self._had_keys = self._had_keys or version > 0
            self._version, self._read_at = version, now
