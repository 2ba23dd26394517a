"""Bounds the open live sessions, in all and for each caller."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from audiocraft_api.config.live import LiveSettings
from audiocraft_api.core.errors import TooManyRequestsAtOnce, TooManyStreams


class LiveSessions:
    """Counts open sessions. Thread-safe."""

    def __init__(self, config: LiveSettings) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._by_owner: Counter[str] = Counter()

    @property
    def num_open(self) -> int:
        return self._by_owner.total()

    @contextmanager
    def admit(self, owner: str) -> Iterator[None]:
        """Count a session of a caller until the block ends. Raises TooManyStreams, TooManyRequestsAtOnce."""
        limit = self._config.live_max_sessions_per_key
        with self._lock:
            if limit and self._by_owner[owner] >= limit:
                raise TooManyRequestsAtOnce(f"You already have {limit} open live sessions. Stop one of them.", 1.0)
            if self.num_open >= (most := self._config.live_max_sessions):
                raise TooManyStreams(f"{most} live sessions are already open. Try again later.")
            self._by_owner[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._by_owner[owner] -= 1
                self._by_owner += Counter()  # drops callers without sessions
