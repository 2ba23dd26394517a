"""Fixtures for tests of the HTTP layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from support.fakes import FakeEngine
from support.http import fake_app
from support.served import paused


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(tmp_path: Path, engine: FakeEngine) -> FlaskClient:
    """A client of an app with `engine`."""
    return fake_app(tmp_path, engine).test_client()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Path]:
    """A file that pauses the fake engine of a server started by `serve(tmp_path, …)` as long as it exists."""
    file = tmp_path / "hold"
    with paused(file):
        yield file
