"""Creates the stores of API keys, quotas and rate limits, in SQLite, in Redis or in memory, as the settings say."""

from __future__ import annotations

from audiocraft_api.access.key_store import KeyStore, SqliteKeyStore
from audiocraft_api.access.quota_store import QuotaStore, SqliteQuotaStore
from audiocraft_api.access.rate_limiter import MemoryRateLimiter, RateLimiter
from audiocraft_api.config import Config
from audiocraft_api.state.create import StateDatabase
from audiocraft_api.state.sqlite import SqliteFile


def create_key_store(state: StateDatabase) -> KeyStore:
    """Return the store of API keys."""
    if isinstance(state, SqliteFile):
        return SqliteKeyStore(state)
    from audiocraft_api.access.key_store import RedisKeyStore
    from audiocraft_api.state.redis import PREFIX

    return RedisKeyStore(state, PREFIX)


def create_quota_store(state: StateDatabase) -> QuotaStore:
    """Return the store of daily quotas."""
    if isinstance(state, SqliteFile):
        return SqliteQuotaStore(state)
    from audiocraft_api.access.quota_store import RedisQuotaStore
    from audiocraft_api.state.redis import PREFIX

    return RedisQuotaStore(state, PREFIX)


def create_rate_limiter(config: Config) -> RateLimiter:
    """Return the counter of requests per minute. It connects when it is first used."""
    if not config.shares_state:
        return MemoryRateLimiter()
    from audiocraft_api.access.rate_limiter import RedisRateLimiter
    from audiocraft_api.state.redis import PREFIX

    return RedisRateLimiter(config.state.redis_url, PREFIX)
