"""A fake engine, and clients of an app that caches results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import fake_app


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(tmp_path: Path, engine: FakeEngine) -> Iterator[FlaskClient]:
    app = fake_app(tmp_path, engine, result_cache_entries=10)
    yield app.test_client()
    services_of(app).close()
