"""Fixtures that the engine's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from audiocraft_api.engine.batching import BatchingEngine
from support.engines import LoadedModels, codes_engine, demo_model


@pytest.fixture
def cache(demo_checkpoints: Path) -> LoadedModels:
    """The demo models, which stay loaded for all tests."""
    return LoadedModels(lambda name: demo_model(demo_checkpoints, name))


@pytest.fixture
def exact_engine(cache: LoadedModels) -> Iterator[BatchingEngine]:
    """An engine in precision `exact` whose waveforms are codes."""
    engine = codes_engine(cache)
    yield engine
    engine.close()
