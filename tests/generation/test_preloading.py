"""Models that are loaded before anybody asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiocraft_api.config import ConfigError, load_config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.factory import create_app
from audiocraft_api.generation.preloading import Preloader
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import fake_app
from support.served import wait_until


def test_the_server_is_not_ready_until_its_models_are_loaded(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.open_gate.clear()
    app = fake_app(tmp_path, engine, preload_models="small, demo")
    client, services = app.test_client(), services_of(app)
    assert client.get("/ready").status_code == 200  # under a server that starts nothing
    services.start()
    try:
        answer = client.get("/ready")
        assert (answer.status_code, answer.json["code"]) == (503, "model_loading")
        assert "small, demo" in answer.json["error"]
        assert client.get("/health").status_code == 200
        engine.open_gate.set()
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert [request.params.model for request in engine.submitted] == ["small", "demo"]
    finally:
        services.close()


def test_a_model_that_cannot_be_loaded_is_logged_and_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.failure = ModelUnavailable("It is not there.", 60)
    preloader = Preloader(engine, ["small", "demo"])
    preloader.start()
    wait_until(lambda: not preloader.pending)
    assert len(engine.submitted) == 2
    assert "small could not be loaded at the start" in caplog.text


def test_a_stop_ends_the_loading(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.open_gate.clear()
    preloader = Preloader(engine, ["small", "demo"])
    preloader.start()
    wait_until(lambda: engine.submitted)
    engine.close()
    engine.open_gate.set()
    assert len(engine.submitted) == 1
    assert "could not" not in caplog.text


def test_a_real_model_is_there_before_the_first_request(tmp_path: Path, demo_checkpoints: Path) -> None:
    config = load_config(
        {},
        preload_models="demo",
        checkpoints_dir=demo_checkpoints,
        offline=True,
        audio_dir=tmp_path / "audio",
        task_db=tmp_path / "tasks.sqlite3",
        state_db=tmp_path / "state.sqlite3",
    )
    app = create_app(config)
    services = services_of(app)
    services.start()
    try:
        wait_until(lambda: app.test_client().get("/ready").status_code == 200, 60)
        assert services.cache.states()["demo"] == "loaded"
    finally:
        services.close()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"preload_models": "demo,huge"}, "AUDIOCRAFT_API_PRELOAD_MODELS: There is no model 'huge'. Choose one of: "),
        ({"preload_models": "small", "allow_non_commercial": False}, "forbids commercial use"),
    ],
)
def test_a_model_that_the_server_does_not_serve_stops_the_start(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Catalog(load_config({}, **settings))
