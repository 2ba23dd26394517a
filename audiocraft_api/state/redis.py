"""One connection to the Redis that several hosts share: its scripts, and its errors as StorageUnavailable.

Each change is one Lua script, so one atomic step. What survives is what Redis keeps: it needs `appendonly yes`, with
`appendfsync always` where the last second counts, and `maxmemory-policy noeviction`; a warning is logged when they are
off. Nothing is tried twice behind the caller's back: a command whose answer was lost may have been carried out, and
only the caller knows whether that matters. Knows nothing of what is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from audiocraft_api.core.errors import StorageUnavailable

TIMEOUT_SECONDS = 5.0  # to connect, and for each answer
PREFIX = "{audiocraft-api}:"  # of all keys; a hash tag, so that a cluster keeps them together

logger = logging.getLogger(__name__)


class RedisClient:
    """Commands and scripts for one store, called `name` where people read of it. Thread-safe; connects when used."""

    def __init__(self, url: str, name: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._client: Any = redis.Redis.from_url(  # its own types speak of all decodings at once
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._name = name
        self._scripts: dict[str, Any] = {}
        self._is_checked = False
        self._failing = False

    @contextmanager
    def commands(self) -> Iterator[Any]:
        """Lend redis-py's client. Raises StorageUnavailable for what goes wrong in the block."""
        try:
            yield self._client
            self._failing = False
        except redis.RedisError as error:
            if not self._failing:  # once, not for each of a thousand requests
                self._failing = True
                logger.error("The %s in Redis cannot be used: %s", self._name, error)
            raise StorageUnavailable(f"The {self._name} cannot be reached now; try again later.") from error

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a Lua script as one atomic step. Raises StorageUnavailable."""
        with self.commands() as client:
            self._check_persistence()
            if script not in self._scripts:
                self._scripts[script] = client.register_script(script)
            return self._scripts[script](keys=keys, args=arguments)

    def close(self) -> None:
        """Close what is idle: requests that are still answered while the server stops use their connections on."""
        self._client.connection_pool.disconnect(inuse_connections=False)

    def _check_persistence(self) -> None:
        if self._is_checked:
            return
        try:
            info = self._client.info()
        except redis.ResponseError:
            info = {}  # a hosted Redis that does not say
        self._is_checked = True
        if not info.get("aof_enabled", True):
            logger.warning("Redis runs without `appendonly yes`: accepted tasks are lost when it stops.")
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            logger.warning("Redis runs without `maxmemory-policy noeviction`: accepted tasks are lost when it is full.")
