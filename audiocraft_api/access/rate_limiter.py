"""Rate limits per minute: exact for all threads of a process, and for all processes that share a Redis.

The window slides: no interval of 60 seconds has more requests than the limit. With Redis, the `limits` library counts,
in one atomic script. Its in-memory storage is not used: it never removes a key and starts a thread for most requests.
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
MAX_KEYS = 100_000  # in memory; beyond it, the least recently admitted key is dropped
REDIS_TIMEOUT_SECONDS = 0.5
REDIS_RETRY_SECONDS = 1.0  # pause between two attempts to reach a Redis that failed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RateLimitState:
    """The state of a limit: `remaining` of `limit` requests per `window_seconds`; more in `reset_seconds`."""

    limit: int
    remaining: int
    reset_seconds: float
    window_seconds: int = WINDOW_SECONDS
    is_allowed: bool = True  # whether the request that was counted is within the limit
    name: str = ""  # of the limit, in response headers


class RateLimiter(Protocol):
    """Counts requests by key, such as `key abcd1234`. Thread-safe. Never raises."""

    def hit(self, key: str, limit: int) -> RateLimitState:
        """Count one request unless it would exceed the limit."""

    def peek(self, key: str, limit: int) -> RateLimitState:
        """Return the state without counting a request."""


class MemoryRateLimiter:
    """Counts the requests of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._lock = threading.Lock()
        # Times of admitted requests by key. The times are in ascending order, the keys in order of their last time.
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def hit(self, key: str, limit: int) -> RateLimitState:
        with self._lock:
            now, times = self._clock(), self._in_window(key)
            is_allowed = len(times) < limit
            if is_allowed:
                times.append(now)
                self._times[key] = times
                self._times.move_to_end(key)
                self._drop_expired(now)
            return _state(is_allowed, times, limit, now)

    def peek(self, key: str, limit: int) -> RateLimitState:
        with self._lock:
            times = self._in_window(key)
            return _state(len(times) < limit, times, limit, self._clock())

    def __len__(self) -> int:
        return len(self._times)

    def _in_window(self, key: str) -> deque[float]:
        times = self._times.get(key, deque())
        since = self._clock() - WINDOW_SECONDS
        while times and times[0] <= since:
            times.popleft()
        return times

    def _drop_expired(self, now: float) -> None:
        """Drop the least recently admitted keys if their window is empty, or while there are too many keys."""
        while True:
            key, times = next(iter(self._times.items()))
            if times and times[-1] > now - WINDOW_SECONDS and len(self._times) <= self._max_keys:
                return
            del self._times[key]


class RedisRateLimiter:
    """Counts the requests of all processes in a shared Redis; while it is unreachable, each process counts alone.

    A process also counts locally what Redis admitted, so that losing Redis does not reset anyone's window.
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
        self._local = MemoryRateLimiter()
        self._lock = threading.Lock()
        self._is_failing = False
        self._retry_at = 0.0

    def hit(self, key: str, limit: int) -> RateLimitState:
        state = self._query(key, limit, counts=True)
        if state is None:
            return self._local.hit(key, limit)
        if state.is_allowed:
            self._local.hit(key, limit)
        return state

    def peek(self, key: str, limit: int) -> RateLimitState:
        return self._query(key, limit, counts=False) or self._local.peek(key, limit)

    def _query(self, key: str, limit: int, *, counts: bool) -> RateLimitState | None:
        """Return the state in Redis, or None while Redis is unavailable."""
        from limits.errors import StorageError

        if not self._should_try():
            return None
        item = self._item(limit)
        try:
            is_allowed = not counts or self._limiter.hit(item, key)
            reset_time, remaining = self._limiter.get_window_stats(item, key)
        except StorageError as error:
            self._record(error)
            return None
        self._record(None)
        remaining = max(remaining, 0)
        reset_seconds = max(reset_time - time.time(), 0.0) if remaining < limit else 0.0
        return RateLimitState(limit, remaining, reset_seconds, is_allowed=is_allowed)

    def _should_try(self) -> bool:
        """Return whether to use Redis. While it is unavailable, only one request per second tries it."""
        with self._lock:
            if not self._is_failing:
                return True
            if time.monotonic() < self._retry_at:
                return False
            self._retry_at = time.monotonic() + REDIS_RETRY_SECONDS
            return True

    def _record(self, error: Exception | None) -> None:
        with self._lock:
            was_failing, self._is_failing = self._is_failing, error is not None
            if error:
                self._retry_at = time.monotonic() + REDIS_RETRY_SECONDS
        if error and not was_failing:
            logger.error("Redis is unavailable; each process counts rate limits alone: %s", error)
        if was_failing and not error:
            logger.info("Redis is available again for rate limits.")


def _state(is_allowed: bool, times: deque[float], limit: int, now: float) -> RateLimitState:
    reset_seconds = max(times[0] + WINDOW_SECONDS - now, 0.0) if times else 0.0
    return RateLimitState(limit, max(limit - len(times), 0), reset_seconds, is_allowed=is_allowed)
