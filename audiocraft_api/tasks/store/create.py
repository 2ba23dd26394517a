"""Creates the store of tasks, in SQLite or Redis, as the settings say."""

from __future__ import annotations

from audiocraft_api.config import Config
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore


def create_task_store(config: Config) -> TaskStore:
    """Return the store of tasks. It is opened when it is first used."""
    if not config.shares_state:
        return SqliteTaskStore(config.tasks.db, max_attempts=config.tasks.attempts)
    from audiocraft_api.tasks.store.redis import RedisTaskStore

    return RedisTaskStore(config.state.redis_url, max_attempts=config.tasks.attempts)
