"""Fixtures of the telemetry tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import fake_app


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_app(tmp_path: Path, engine: FakeEngine) -> Iterator[Callable[..., Flask]]:
    """A function that creates an app with the given settings; all apps are closed at the end."""
    apps: list[Flask] = []

    def make_app(**settings: Any) -> Flask:
        apps.append(fake_app(tmp_path, engine, **settings))
        return apps[-1]

    yield make_app
    engine.open_gate.set()
    for app in apps:
        services_of(app).close()
