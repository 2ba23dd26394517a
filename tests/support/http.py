"""Apps and requests for tests of the HTTP layer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from audiocraft_api.config import Config
from audiocraft_api.factory import create_app
from audiocraft_api.tasks.intervals import TaskIntervals
from support.fakes import FakeCache, FakeEngine
from support.intervals import FAST_INTERVALS


def fake_app(
    directory: Path, engine: FakeEngine | None = None, intervals: TaskIntervals = FAST_INTERVALS, **settings: Any
) -> Flask:
    """Return a new app over a fake engine, with everything else real."""
    directories = {"audio_dir": "audio", "checkpoints_dir": "checkpoints"}
    directories |= {"task_db": "tasks.sqlite3", "state_db": "state.sqlite3"}
    config = Config(**{name: directory / part for name, part in directories.items()} | settings)
    return create_app(config, engine=engine or FakeEngine(), cache=FakeCache(), intervals=intervals)


def generate(client: FlaskClient, **fields: Any) -> TestResponse:
    """Ask for a second of audio."""
    return client.post("/generate", json={"prompt": "solo cello", "duration": 1} | fields)


def assert_error(
    response: TestResponse, status: int, code: str, *fields: str, details: Collection[str] = ()
) -> dict[str, Any]:
    """Check that an answer is an error of the one shape, naming exactly `fields`, with `details`; return its body."""
    assert response.status_code == status, response.get_data()[:300]
    assert response.mimetype == "application/json"
    body: dict[str, Any] = response.get_json()
    assert set(body) == {"error", "code", "request_id"} | ({"errors"} if fields else set()) | set(details)
    assert isinstance(body["error"], str)
    assert body["error"].strip()
    assert body["code"] == code
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert set(body.get("errors", {})) == set(fields)
    assert all(isinstance(sentence, str) for sentences in body.get("errors", {}).values() for sentence in sentences)
    return body
