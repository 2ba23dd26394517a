"""The client code of existing pages works as it is, and always ends: its polling loop knows only two final states."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.serving import make_server

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import fake_app
from support.keys import ENVIRONMENT_KEY, OTHER_KEY, with_key
from support.served import wait_until
from support.tasks import REQUEST

CLIENT = Path(__file__).parents[1] / "support" / "founding_client.mjs"
SECONDS = 20  # after which a client that does not end fails its test

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def app(tmp_path: Path, engine: FakeEngine) -> Iterator[Flask]:
    """An app that requires a key and forgets a task soon after its end."""
    app = fake_app(tmp_path, engine, keys=ENVIRONMENT_KEY, task_max_age_seconds=1)
    yield app
    services_of(app).close()


@pytest.fixture
def start(app: Flask) -> Iterator[Start]:
    """Serve the app, and return a function that starts a client."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clients: list[subprocess.Popen[str]] = []

    def start(function: str, *arguments: Any, key: str = ENVIRONMENT_KEY) -> subprocess.Popen[str]:
        command = ["node", str(CLIENT), f"http://127.0.0.1:{server.server_port}", key, "20", function]
        command += [json.dumps(argument) for argument in arguments]
        clients.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        client.communicate()
    server.shutdown()
    server.server_close()


def result_of(client: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = client.communicate(timeout=SECONDS)
    result: dict[str, Any] = json.loads(output)
    return result


def only_task(app: Flask) -> dict[str, Any]:
    (task,) = app.test_client().get("/tasks", headers=with_key(ENVIRONMENT_KEY)).json["tasks"]
    return dict(task)


def test_it_generates_audio_and_waits(start: Start) -> None:
    result = result_of(start("generateAudio", "solo cello", {"duration": 1, "format": "mp3"}))
    assert result["success"] is True
    assert result["audio_url"].endswith(".mp3")


def test_it_polls_a_task_until_the_audio_is_ready(start: Start) -> None:
    result = result_of(start("generateAudioAsync", "solo cello", {"duration": 1, "format": "ogg"}))
    assert (result["status"], result["result"]["format"]) == ("completed", "ogg")


def test_a_refused_submission_ends(start: Start) -> None:
    refused = result_of(start("generateAudio", "solo cello", {"modelSize": "unknown"}))
    assert "unknown" in refused["error"]
    ended = result_of(start("generateAudioAsync", "solo cello", {"modelSize": "unknown"}))
    assert (ended["status"], ended["code"]) == ("failed", "not_found")
    assert isinstance(ended["error"], str)


def test_a_failed_task_ends(start: Start, engine: FakeEngine) -> None:
    engine.failure = AudioCraftError("The model cannot generate this sound.")
    ended = result_of(start("generateAudioAsync", "solo cello", {"duration": 1}))
    assert (ended["status"], ended["error"]) == ("failed", "The model cannot generate this sound.")


def test_a_canceled_task_ends_when_it_expires(app: Flask, start: Start, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    client = start("generateAudioAsync", "solo cello", {"duration": 1})
    wait_until(lambda: bool(engine.submitted))
    app.test_client().delete(f"/tasks/{only_task(app)['task_id']}", headers=with_key(ENVIRONMENT_KEY))
    ended = result_of(client)
    assert (ended["status"], ended["code"]) == ("failed", "not_found")


def test_an_expired_task_ends(app: Flask, start: Start) -> None:
    requests = app.test_client()
    task_id = requests.post("/generate-async", json=REQUEST, headers=with_key(ENVIRONMENT_KEY)).json["task_id"]
    wait_until(lambda: requests.get(f"/tasks/{task_id}", headers=with_key(ENVIRONMENT_KEY)).status_code == 404)
    assert result_of(start("pollTask", task_id))["status"] == "failed"


@pytest.mark.parametrize("key", [OTHER_KEY, "two,keys", ""])
def test_a_wrong_key_ends(start: Start, key: str) -> None:
    assert isinstance(result_of(start("generateAudio", "solo cello", key=key))["error"], str)
    ended = result_of(start("generateAudioAsync", "solo cello", key=key))
    assert (ended["status"], ended["code"]) == ("failed", "invalid_request" if "," in key else "unauthorized")


def test_only_errors_that_are_final_have_a_status(app: Flask) -> None:
    requests, headers = app.test_client(), with_key(ENVIRONMENT_KEY)
    assert requests.get("/tasks/unknown", headers=headers).json["status"] == "failed"
    assert "status" not in requests.get("/tasks/unknown/events", headers=headers).json
    assert "status" not in requests.delete("/tasks/unknown", headers=headers).json
    services_of(app).close()
    response = requests.get("/tasks/unknown", headers=headers)
    assert response.status_code == 503
    assert "status" not in response.json
