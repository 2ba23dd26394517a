"""A client of the Redis that several hosts share: runs Lua scripts and raises StorageUnavailable for Redis errors.

Each change is one Lua script and therefore atomic. Durability depends on the configuration of Redis: it needs
`appendonly yes`, `appendfsync always` if losing the last second is not acceptable, and `maxmemory-policy noeviction`.
A warning is logged when the first or the last is missing. Commands are never retried here: a command whose reply was
lost may have been executed, and only the caller knows whether that matters. Knows nothing of the stored data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from audiocraft_api.core.errors import StorageUnavailable

TIMEOUT_SECONDS = 5.0  # to connect, and for each reply
PREFIX = "{audiocraft-api}:"  # of all keys; a hash tag, so that a cluster keeps them in one slot

logger = logging.getLogger(__name__)


class RedisClient:
    """Commands and scripts for one store; `name` is its name in messages. Thread-safe. Connects on first use."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_unavailable: Callable[[], None] | None = None,
    ) -> None:
        self._client: Any = redis.Redis.from_url(  # redis-py types replies as a union over all decodings
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._name = name
        self._on_unavailable = on_unavailable
        self._scripts: dict[str, Any] = {}
        self._is_checked = False
        self._failing = False

    @contextmanager
    def commands(self) -> Iterator[Any]:
        """Yield redis-py's client. Raises StorageUnavailable for Redis errors in the block."""
        try:
            yield self._client
            self._failing = False
        except redis.RedisError as error:
            if self._on_unavailable:
                self._on_unavailable()
            if not self._failing:  # log once per outage, not once per request
                self._failing = True
                logger.error("The %s in Redis cannot be used: %s", self._name, error)
            raise StorageUnavailable(f"The {self._name} cannot be reached. Try again later.") from error

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a Lua script atomically. Raises StorageUnavailable."""
        with self.commands() as client:
            self._check_persistence()
            if script not in self._scripts:
                self._scripts[script] = client.register_script(script)
            return self._scripts[script](keys=keys, args=arguments)

    def close(self) -> None:
        """Close idle connections. Requests that are still running keep their connections."""
        self._client.connection_pool.disconnect(inuse_connections=False)

    def _check_persistence(self) -> None:
        if self._is_checked:
            return
        try:
            info = self._client.info()
        except redis.ResponseError:
            info = {}  # some hosted services forbid INFO
        self._is_checked = True
        if not info.get("aof_enabled", True):
            logger.warning("Redis runs without `appendonly yes`: accepted tasks are lost when it stops.")
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            logger.warning("Redis runs without `maxmemory-policy noeviction`: accepted tasks are lost when it is full.")
