"""How many requests came under a name within the last minute: exact under threads, and over processes with a Redis.

A moving window: no 60 seconds ever see more than the limit, also where one minute ends and the next begins. Over
processes the count is that of the `limits` library, which Flask-Limiter stands on: a script that Redis carries out as
one step. Flask-Limiter itself counts before a route, and this limit comes after the body is read and the prompt
allowed. The library's memory is not used: it never forgets a name, and starts a thread for most requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

WINDOW_SECONDS = 60
MAX_NAMES = 100_000  # that are remembered; the one that was admitted longest ago is forgotten first
REDIS_TIMEOUT_SECONDS = 0.5
REDIS_RETRY_SECONDS = 1.0  # how long a Redis that did not answer is left alone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """Where a name stands: whether its request may pass, how many more may, and when the next place is free."""

    is_allowed: bool
    remaining: int
    reset_seconds: float


class RateLimiter(Protocol):
    """Counts requests by name. Thread-safe; raises nothing."""

    def hit(self, name: str, limit: int) -> Standing:
        """Count one request unless that would be one too many within the window."""

    def peek(self, name: str, limit: int) -> Standing:
        """Return what `hit` would find, and count nothing."""


class MemoryRateLimiter:
    """Counts of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_names: int = MAX_NAMES) -> None:
        self._clock = clock
        self._max_names = max_names
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # of admitted requests, the oldest first

    def hit(self, name: str, limit: int) -> Standing:
        with self._lock:
            now, times = self._clock(), self._in_window(name)
            is_allowed = len(times) < limit
            if is_allowed:
                times.append(now)
                self._times[name] = times
                self._times.move_to_end(name)
                self._forget(now)
            return _standing(is_allowed, times, limit, now)

    def peek(self, name: str, limit: int) -> Standing:
        with self._lock:
            times = self._in_window(name)
            return _standing(len(times) < limit, times, limit, self._clock())

    def __len__(self) -> int:
        return len(self._times)

    def _in_window(self, name: str) -> deque[float]:
        times = self._times.get(name, deque())
        since = self._clock() - WINDOW_SECONDS
        while times and times[0] <= since:
            times.popleft()
        return times

    def _forget(self, now: float) -> None:
        """Drop the names that come first, which were admitted longest ago, once their window is empty."""
        while True:
            name, times = next(iter(self._times.items()))
            if times and times[-1] > now - WINDOW_SECONDS and len(self._times) <= self._max_names:
                return
            del self._times[name]


class RedisRateLimiter:
    """Counts that all processes share in a Redis; while it does not answer, each process goes by its own.

    Its own counts have what Redis let pass here, so that the death of Redis gives nobody a new minute.
    """

    def __init__(self, url: str, prefix: str) -> None:
        from limits import RateLimitItemPerMinute
        from limits.storage import RedisStorage
        from limits.strategies import MovingWindowRateLimiter
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
        options |= {"socket_timeout": REDIS_TIMEOUT_SECONDS, "socket_connect_timeout": REDIS_TIMEOUT_SECONDS}
        storage = RedisStorage(url, key_prefix=prefix + "bursts", wrap_exceptions=True, **options)
        self._limiter = MovingWindowRateLimiter(storage)
        self._item = RateLimitItemPerMinute
        self._own = MemoryRateLimiter()
        self._lock = threading.Lock()
        self._is_failing = False
        self._retry_at = 0.0

    def hit(self, name: str, limit: int) -> Standing:
        standing = self._ask(name, limit, counts=True)
        if standing is None:
            return self._own.hit(name, limit)
        if standing.is_allowed:
            self._own.hit(name, limit)
        return standing

    def peek(self, name: str, limit: int) -> Standing:
        return self._ask(name, limit, counts=False) or self._own.peek(name, limit)

    def _ask(self, name: str, limit: int, *, counts: bool) -> Standing | None:
        """Return what Redis says; None when it cannot be asked."""
        from limits.errors import StorageError

        if not self._may_ask():
            return None
        item = self._item(limit)
        try:
            is_allowed = not counts or self._limiter.hit(item, name)
            reset_time, remaining = self._limiter.get_window_stats(item, name)
        except StorageError as error:
            self._note(error)
            return None
        self._note(None)
        remaining = max(remaining, 0)
        reset_seconds = max(reset_time - time.time(), 0.0) if remaining < limit else 0.0
        return Standing(is_allowed, remaining, reset_seconds)

    def _may_ask(self) -> bool:
        """Say whether to ask Redis; of those that come while it is away, one a second finds out."""
        with self._lock:
            if not self._is_failing:
                return True
            if time.monotonic() < self._retry_at:
                return False
            self._retry_at = time.monotonic() + REDIS_RETRY_SECONDS
            return True

    def _note(self, error: Exception | None) -> None:
        with self._lock:
            was_failing, self._is_failing = self._is_failing, error is not None
            if error:
                self._retry_at = time.monotonic() + REDIS_RETRY_SECONDS
        if error and not was_failing:
            logger.error("Limits a minute are counted by each process alone while Redis does not answer: %s", error)
        if was_failing and not error:
            logger.info("Limits a minute are counted in Redis again.")


def _standing(is_allowed: bool, times: deque[float], limit: int, now: float) -> Standing:
    reset_seconds = max(times[0] + WINDOW_SECONDS - now, 0.0) if times else 0.0
    return Standing(is_allowed, max(limit - len(times), 0), reset_seconds)
