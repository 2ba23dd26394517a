"""Fixtures shared by several test packages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _restore_log_levels() -> Iterator[None]:
    """Restore the log levels that an app of the test may have changed for the whole process."""
    loggers = [logging.getLogger(name) for name in (None, "audiocraft_api", "gunicorn.error", "gunicorn.access")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def demo_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with untrained models by the names of all demo models, for `Config.checkpoints_dir`.

    They are smaller and faster than the trained ones, and every code is as likely as any other. Read-only: copy what
    you change.
    """
    from audiocraft_api.model import demo
    from bench import untrained

    directory = tmp_path_factory.mktemp("checkpoints")
    for name in demo.NAMES:
        demo.build(name, directory, untrained.write)
    return directory


@pytest.fixture(scope="session")
def separator_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source separator of demo models, for `Config.checkpoints_dir`."""
    from audiocraft_api.model import demo, demo_separator
    from audiocraft_api.model.stem_separators import DEMO_DIRECTORY

    directory = tmp_path_factory.mktemp("separator")
    demo.build(DEMO_DIRECTORY, directory, demo_separator.write)
    return directory


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Rerun failed `timing` tests once; deselect `gpu` tests if there is no CUDA device."""
    for item in items:
        if item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]
