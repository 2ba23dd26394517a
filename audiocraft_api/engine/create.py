"""Creates the engine that the settings name."""

from __future__ import annotations

from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine
from audiocraft_api.model.model_cache import ModelCache


def create_engine(models: ModelCache, config: Config) -> Engine:
    """Return the engine. Its threads start with its first request, and only then import torch."""
    if config.engine.kind == "plain":
        from audiocraft_api.engine.plain import PlainEngine

        return PlainEngine(models, config.engine)
    from audiocraft_api.engine.batching import BatchingEngine

    return BatchingEngine(models, config.engine)
