"""Creates the store of tasks, in SQLite or Redis, as the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.core.observer import Observer
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore

if TYPE_CHECKING:
    from audiocraft_api.tasks.store.redis import RedisTaskStore


def create_task_store(config: Config, observer: Observer) -> TaskStore:
    """Return the store of tasks. It is opened when it is first used."""
    if not config.shares_state:
        return SqliteTaskStore(
            config.tasks.db,
            max_attempts=config.tasks.attempts,
            on_unavailable=lambda: observer.storage_failed("tasks"),
        )
    return create_redis_task_store(config, observer)


def create_redis_task_store(config: Config, observer: Observer) -> RedisTaskStore:
    """Return the store that Celery workers share. It is opened when it is first used."""
    from audiocraft_api.tasks.store.redis import RedisTaskStore

    return RedisTaskStore(
        config.state.redis_url,
        max_attempts=config.tasks.attempts,
        on_unavailable=lambda: observer.storage_failed("tasks"),
    )
