"""A prompt that is not allowed is refused on every endpoint, before any work, and never logged."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from simple_websocket import Client, ConnectionClosed
from werkzeug.test import TestResponse

from support import hostile_audio
from support.fakes import FakeEngine
from support.http import assert_error, fake_app
from support.served import free_port, serve

TIMEOUT_SECONDS = 60.0
REFUSED = "sad piano, kill yourself, 90 bpm"
ENDPOINTS = ["/generate", "/generate-async", "/generate-stream", "/generate-with-melody", "/generate-with-melody-async"]


MELODY = hostile_audio.audio_file(hostile_audio.tone(1.0, 16_000, 1), 16_000, "WAV", "PCM_16")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def open_client(tmp_path: Path, engine: FakeEngine) -> Callable[..., FlaskClient]:
    return lambda **settings: fake_app(tmp_path, engine, **settings).test_client()


def send(client: FlaskClient, endpoint: str, prompt: str, headers: dict[str, str] | None = None) -> TestResponse:
    """Request a second of audio."""
    if "melody" in endpoint:
        form: dict[str, Any] = {"prompt": prompt, "duration": "1", "melody": (io.BytesIO(MELODY), "melody.wav")}
        return client.post(endpoint, data=form, headers=headers, content_type="multipart/form-data", buffered=True)
    return client.post(endpoint, json={"prompt": prompt, "duration": 1}, headers=headers, buffered=True)


def generate_over_websocket(port: int, prompt: str) -> tuple[dict[str, Any], int]:
    """Request a second of audio; return the last JSON message and the close code."""
    last: dict[str, Any] = {}
    ws = Client.connect(f"ws://127.0.0.1:{port}/ws/generate")
    ws.send(json.dumps({"prompt": prompt, "duration": 1}))
    try:
        while True:
            message = ws.receive(timeout=TIMEOUT_SECONDS)
            assert message is not None, "no message arrived in time"
            if isinstance(message, str):
                last = json.loads(message)
    except ConnectionClosed:
        ws.thread.join(TIMEOUT_SECONDS)
        return last, int(ws.close_reason)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_refuses_with_category_and_suggestion(
    open_client: Callable[..., FlaskClient], engine: FakeEngine, endpoint: str
) -> None:
    client = open_client()
    body = assert_error(send(client, endpoint, REFUSED), 422, "prompt_refused", details=("category", "suggestion"))
    assert body["category"] == "self_harm"
    assert body["error"] == "The prompt seems to contain a call for self-harm."
    assert "findahelpline.com" in body["suggestion"]
    assert engine.submitted == []
    assert client.get("/tasks").json["tasks"] == []
    assert send(client, endpoint, "killer riff, live room").status_code in (200, 202)


def test_a_preference_for_a_task_does_not_bypass_the_policy(open_client: Callable[..., FlaskClient]) -> None:
    for preference in ("respond-async", "wait=1"):
        response = send(open_client(), "/generate", REFUSED, {"Prefer": preference})
        assert_error(response, 422, "prompt_refused", details=("category", "suggestion"))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_without_a_moderation_verdict_every_endpoint_is_unavailable(
    open_client: Callable[..., FlaskClient], engine: FakeEngine, endpoint: str
) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    response = send(open_client(moderation_url=url), endpoint, "solo cello")
    assert_error(response, 503, "moderation_unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    assert engine.submitted == []
    assert send(open_client(moderation_url=url, moderation_failure="open"), endpoint, "solo cello").status_code in (
        200,
        202,
    )


def test_invalid_fields_are_refused_before_the_prompt(open_client: Callable[..., FlaskClient]) -> None:
    response = open_client().post("/generate", json={"prompt": REFUSED, "duration": 99})
    assert_error(response, 400, "invalid_request", "duration")


def test_a_refused_prompt_is_not_logged(
    open_client: Callable[..., FlaskClient], capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(log_prompts=True, log_level="DEBUG")
    send(client, "/generate", REFUSED)
    send(client, "/generate", "solo cello")
    log = capsys.readouterr().err
    assert "solo cello" in log
    assert "yourself" not in log


def test_the_websocket_refuses_with_category_and_suggestion(tmp_path: Path) -> None:
    with serve(tmp_path, "support.streamed:app") as server:
        error, close_code = generate_over_websocket(server.port, REFUSED)
        assert (error["type"], error["code"], error["category"]) == ("error", "prompt_refused", "self_harm")
        assert error["suggestion"]
        assert close_code == 1008
        assert generate_over_websocket(server.port, "solo cello")[0]["type"] == "done"
        assert "yourself" not in server.log


def test_openapi_documents_the_fields_of_a_refusal(open_client: Callable[..., FlaskClient]) -> None:
    document = open_client().get("/openapi.json").json
    assert {"category", "suggestion"} <= set(document["components"]["schemas"]["ErrorResponse"]["properties"])
    for endpoint in ENDPOINTS:
        assert {"422", "503"} <= set(document["paths"][endpoint]["post"]["responses"])
