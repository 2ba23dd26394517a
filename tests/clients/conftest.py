"""A real server with a fake engine that needs a key, for the tests of the clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.keys import ENVIRONMENT_KEY
from support.served import Server, paused, serve


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with serve(directory, "support.streamed:app", keys=ENVIRONMENT_KEY) as running:
        yield running


@pytest.fixture
def hold(directory: Path) -> Iterator[Path]:
    """A file that pauses generations with the prompt `hold after N` as long as it exists."""
    file = directory / "hold"
    with paused(file):
        yield file


@pytest.fixture
def terminal_pair() -> Iterator[tuple[int, int]]:
    """What the user sees of a terminal, and the end of it that a program writes to."""
    pair = os.openpty()
    yield pair
    for end in pair:
        os.close(end)
