"""Fixtures that several topics share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all demo checkpoints, for `Config.checkpoints_dir`. Read only: copy what you change."""
    from audiocraft_api.model import demo

    directory = tmp_path_factory.mktemp("checkpoints")
    for name in demo.NAMES:
        demo.build(name, directory)
    return directory
