"""A prompt that is not allowed is refused at every door, before any work, and is not written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from test_contract import tune
from test_websocket import Conversation
from werkzeug.test import TestResponse

from support.fakes import FakeEngine
from support.http import assert_error, fake_app
from support.served import free_port, serve

REFUSED = "sad piano, kill yourself, 90 bpm"
DOORS = ["/generate", "/generate-async", "/generate-stream", "/generate-with-melody", "/generate-with-melody-async"]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def open_client(tmp_path: Path, engine: FakeEngine) -> Callable[..., FlaskClient]:
    return lambda **settings: fake_app(tmp_path, engine, **settings).test_client()


def ask(client: FlaskClient, door: str, prompt: str, headers: dict[str, str] | None = None) -> TestResponse:
    """Ask for a second of audio of a prompt."""
    if "melody" in door:
        form: dict[str, Any] = {"prompt": prompt, "duration": "1", "melody": (tune(), "tune.wav")}
        return client.post(door, data=form, headers=headers, content_type="multipart/form-data", buffered=True)
    return client.post(door, json={"prompt": prompt, "duration": 1}, headers=headers, buffered=True)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_with_category_and_suggestion(
    open_client: Callable[..., FlaskClient], engine: FakeEngine, door: str
) -> None:
    client = open_client()
    body = assert_error(ask(client, door, REFUSED), 422, "prompt_refused", details=("category", "suggestion"))
    assert body["category"] == "self_harm"
    assert body["error"] == "The prompt seems to contain a call for self-harm."
    assert "findahelpline.com" in body["suggestion"]
    assert engine.submitted == []
    assert client.get("/tasks").json["tasks"] == []
    assert ask(client, door, "killer riff, live room").status_code in (200, 202)


def test_a_preference_for_a_task_is_no_way_around(open_client: Callable[..., FlaskClient]) -> None:
    for preference in ("respond-async", "wait=1"):
        answer = ask(open_client(), "/generate", REFUSED, {"Prefer": preference})
        assert_error(answer, 422, "prompt_refused", details=("category", "suggestion"))


@pytest.mark.parametrize("door", DOORS)
def test_where_moderation_gives_no_answer_every_door_is_closed(
    open_client: Callable[..., FlaskClient], engine: FakeEngine, door: str
) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    answer = ask(open_client(moderation_url=url), door, "solo cello")
    assert_error(answer, 503, "moderation_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert engine.submitted == []
    assert ask(open_client(moderation_url=url, moderation_failure="open"), door, "solo cello").status_code in (200, 202)


def test_a_prompt_of_the_wrong_shape_is_told_so_first(open_client: Callable[..., FlaskClient]) -> None:
    answer = open_client().post("/generate", json={"prompt": REFUSED, "duration": 99})
    assert_error(answer, 400, "invalid_request", "duration")


def test_a_refused_prompt_is_not_logged(
    open_client: Callable[..., FlaskClient], capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(log_prompts=True, log_level="DEBUG")
    ask(client, "/generate", REFUSED)
    ask(client, "/generate", "solo cello")
    log = capsys.readouterr().err
    assert "solo cello" in log
    assert "yourself" not in log


def test_the_websocket_refuses_with_category_and_suggestion(tmp_path: Path) -> None:
    with serve(tmp_path, "support.streamed:app") as server:
        conversation = Conversation(server.port, {"prompt": REFUSED, "duration": 1})
        error = conversation.hear_all()
        assert (error["type"], error["code"], error["category"]) == ("error", "prompt_refused", "self_harm")
        assert error["suggestion"]
        assert conversation.close_code == 1008
        assert Conversation(server.port, {"prompt": "solo cello", "duration": 1}).hear_all()["type"] == "done"
        assert "yourself" not in server.log


def test_the_document_says_what_a_refusal_has(open_client: Callable[..., FlaskClient]) -> None:
    document = open_client().get("/openapi.json").json
    assert {"category", "suggestion"} <= set(document["components"]["schemas"]["ErrorResponse"]["properties"])
    for door in DOORS:
        assert {"422", "503"} <= set(document["paths"][door]["post"]["responses"])
