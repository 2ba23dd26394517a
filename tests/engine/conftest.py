"""Fixtures that the engine's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.engines import LoadedModels, demo_model


@pytest.fixture
def cache(demo_checkpoints: Path) -> LoadedModels:
    """The demo models, which stay loaded for all tests."""
    return LoadedModels(lambda name: demo_model(demo_checkpoints, name))
