"""Creates the result cache over SQLite or Redis, depending on the settings."""

from __future__ import annotations

from audiocraft_api.config import Config
from audiocraft_api.core.observer import Observer
from audiocraft_api.generation.cache.base import ResultStore
from audiocraft_api.generation.cache.result_cache import ResultCache
from audiocraft_api.generation.cache.sqlite import SqliteResultStore
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.state.create import StateDatabase
from audiocraft_api.state.sqlite import SqliteFile
from audiocraft_api.storage.base import AudioStore


def create_result_cache(
    state: StateDatabase, files: AudioStore, models: ModelCache, config: Config, observer: Observer
) -> ResultCache | None:
    """Return the result cache, or None when it is disabled."""
    if not config.results.cache_entries:
        return None
    return ResultCache(_create_store(state, config), files, models.known_revision, config, observer)


def _create_store(state: StateDatabase, config: Config) -> ResultStore:
    max_entries, max_age_seconds = config.results.cache_entries, config.results.cache_max_age_seconds
    if isinstance(state, SqliteFile):
        return SqliteResultStore(state, max_entries=max_entries, max_age_seconds=max_age_seconds)
    from audiocraft_api.generation.cache.redis import RedisResultStore

    return RedisResultStore(state, max_entries=max_entries, max_age_seconds=max_age_seconds)
