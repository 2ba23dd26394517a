"""Apps, requests and melodies for tests of the HTTP layer."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import soundfile
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
    """Return a new app with a fake engine and a fake model cache; everything else is real."""
    directories = {"audio_dir": "audio", "checkpoints_dir": "checkpoints"}
    directories |= {"task_db": "tasks.sqlite3", "state_db": "state.sqlite3"}
    config = Config(**{name: directory / part for name, part in directories.items()} | settings)
    return create_app(config, engine=engine or FakeEngine(), cache=FakeCache(), intervals=intervals)


def generate(client: FlaskClient, **fields: Any) -> TestResponse:
    """Generate one second of audio with `POST /generate`."""
    return client.post("/generate", json={"prompt": "solo cello", "duration": 1} | fields)


def melody_file(format: str = "WAV") -> io.BytesIO:
    """Return a mono audio file of one second at 16 kHz, to upload as a melody."""
    file = io.BytesIO()
    soundfile.write(file, [0.1, -0.1] * 8000, 16_000, format=format)
    file.seek(0)
    return file


def assert_error(
    response: TestResponse, status: int, code: str, *fields: str, details: Collection[str] = ()
) -> dict[str, Any]:
    """Check that a response is an error in the common format and names exactly `fields`; return its body.

    `details` are the additional keys that the body must have.
    """
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
