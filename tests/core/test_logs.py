"""Each request is logged on one line, with its id, and without its prompt unless a setting says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import fake_app, generate
from support.served import wait_until


@pytest.fixture(autouse=True)
def _restored_logging() -> Any:
    """Logging is configured for the whole process: restore it after each test."""
    loggers = [logging.getLogger(name) for name in ("", "audiocraft_api", "gunicorn.error", "gunicorn.access")]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:], logger.propagate = handlers, propagate


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_request_is_one_text_line_with_method_path_status_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = fake_app(tmp_path).test_client()
    client.get("/nothing", headers={"X-Request-ID": "mine"})
    (line,) = lines(capsys)
    assert "INFO" in line
    assert "[mine] audiocraft_api.access: GET /nothing 404 in " in line
    assert line.endswith(" ms")


def test_json_log_lines_have_the_same_information_as_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = fake_app(tmp_path, log_format="json").test_client()
    client.get("/nothing", headers={"X-Request-ID": "mine"})
    (line,) = lines(capsys)
    record = json.loads(line)
    assert record["request_id"] == "mine"
    assert (record["method"], record["path"], record["status"]) == ("GET", "/nothing", 404)
    assert record["milliseconds"] >= 0
    assert (record["level"], record["logger"]) == ("INFO", "audiocraft_api.access")
    assert record["time"].endswith("Z")


def test_json_lines_of_a_running_task_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine()
    engine.failure = GenerationFailed("It failed.")
    app = fake_app(tmp_path, engine, log_format="json")
    task_id = app.test_client().post("/generate-async", json={"prompt": "solo cello", "duration": 1}).json["task_id"]
    found: list[dict[str, Any]] = []

    def is_logged() -> bool:
        found.extend(json.loads(line) for line in capsys.readouterr().err.splitlines())
        return any("failed" in record["message"] for record in found)

    wait_until(is_logged)
    services_of(app).close()
    assert [record["task_id"] for record in found if "failed" in record["message"]] == [task_id]
    assert not [record for record in found if record["message"].startswith("POST") and "task_id" in record]


def test_log_lines_cannot_be_forged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = fake_app(tmp_path, log_prompts=True).test_client()
    client.get("/a%0aERROR%20forged")
    generate(client, prompt="a\nERROR forged\u2028ERROR forged\x1b[2J")
    assert not [line for line in lines(capsys) if line.startswith(("ERROR", "\x1b"))]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_prompts_are_logged_only_if_a_setting_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    generate(fake_app(tmp_path, log_format=log_format).test_client(), prompt="my secret song")
    generate(fake_app(tmp_path, log_format=log_format).test_client(), prompt="my secret song", duration=0)
    assert "secret" not in capsys.readouterr().err
    generate(fake_app(tmp_path, log_format=log_format, log_prompts=True).test_client(), prompt="my secret song")
    assert "my secret song" in capsys.readouterr().err


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_unexpected_error_is_logged_once_with_its_traceback_under_the_request_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(engine, "submit", lambda *_a, **_k: {}["absent"])
    response = generate(fake_app(tmp_path, engine, log_format=log_format).test_client())
    log = capsys.readouterr().err
    assert log.count("KeyError: 'absent'") == 1
    error_line = next(line for line in log.splitlines() if "Unexpected error" in line)
    assert response.json["request_id"] in error_line


def test_the_log_level_is_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_app(tmp_path, log_level="WARNING").test_client().get("/health")
    assert not lines(capsys)


def test_log_lines_outside_a_request_have_no_request_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_app(tmp_path).test_client().get("/health", headers={"X-Request-ID": "mine"})
    logging.getLogger("audiocraft_api.test").info("later")
    assert "[-] audiocraft_api.test: later" in lines(capsys)[-1]
