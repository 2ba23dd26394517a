"""Creates the database that the state stores share: SQLite or Redis, depending on the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from audiocraft_api.config import Config
from audiocraft_api.state import schema
from audiocraft_api.state.sqlite import SqliteFile

if TYPE_CHECKING:
    from audiocraft_api.state.redis import RedisClient

StateDatabase: TypeAlias = "SqliteFile | RedisClient"

# Every request with an API key may wait for this Redis: fail fast.
REDIS_TIMEOUT_SECONDS = 1.0


def create_state(config: Config) -> StateDatabase:
    """Create the database of API keys, quotas and cached results. It is opened on first use."""
    if not config.shares_state:
        return SqliteFile(config.state.db, schema.LAYOUT)
    from audiocraft_api.state.redis import RedisClient

    return RedisClient(config.state.redis_url, schema.LAYOUT.name, timeout_seconds=REDIS_TIMEOUT_SECONDS)
