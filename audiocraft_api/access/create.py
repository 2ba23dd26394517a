"""Creates the stores of API keys, quotas and rate limits, in SQLite, Redis or memory, depending on the settings."""

from __future__ import annotations

from audiocraft_api.access.key_store import KeyStore, SqliteKeyStore
from audiocraft_api.access.quota_store import QuotaStore, SqliteQuotaStore
from audiocraft_api.access.rate_limiter import MemoryRateLimiter, RateLimiter
from audiocraft_api.config import Config
from audiocraft_api.state.create import StateDatabase
from audiocraft_api.state.sqlite import SqliteFile


def create_key_store(state: StateDatabase) -> KeyStore:
    """Create the store of API keys."""
    if isinstance(state, SqliteFile):
        return SqliteKeyStore(state)
    from audiocraft_api.access.key_store import RedisKeyStore
    from audiocraft_api.state.redis import PREFIX

    return RedisKeyStore(state, PREFIX)


def create_quota_store(state: StateDatabase) -> QuotaStore:
    """Create the store of daily quotas."""
    if isinstance(state, SqliteFile):
        return SqliteQuotaStore(state)
    from audiocraft_api.access.quota_store import RedisQuotaStore
    from audiocraft_api.state.redis import PREFIX

    return RedisQuotaStore(state, PREFIX)


def create_rate_limiter(config: Config) -> RateLimiter:
    """Create the rate limiter. With Redis, it connects on first use."""
    if not config.shares_state:
        return MemoryRateLimiter()
    from audiocraft_api.access.rate_limiter import RedisRateLimiter
    from audiocraft_api.state.redis import PREFIX

    return RedisRateLimiter(config.state.redis_url, PREFIX)
