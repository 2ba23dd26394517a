"""Loading and unloading models on request: states, progress, memory, and requests that use a model meanwhile."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api.config import Config
from audiocraft_api.core.errors import NoModelsHere
from audiocraft_api.core.load_progress import LoadProgress
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.factory import create_app
from audiocraft_api.generation.model_control import ModelControl, ModelState
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.web.services import services_of
from support.fakes import FakeCache
from support.http import assert_error, fake_app
from support.keys import create_key, with_key
from support.served import wait_until

TIMEOUT_SECONDS = 60.0
IDLE = {"error": None, "progress": None}


class Loads:
    """Loads models as the service does, when `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.models: list[weakref.ref[Any]] = []
        self.report: Callable[[LoadProgress], None]

    def __call__(self, spec: Any, catalog: Catalog, config: Config, report: Callable[[LoadProgress], None]) -> Any:
        self.report = report
        self.begun.set()
        assert self.gate.wait(TIMEOUT_SECONDS)
        model = load_model(spec, catalog, config, report)
        self.models.append(weakref.ref(model))
        return model


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture(params=["batching", "plain"])
def client(
    request: pytest.FixtureRequest, demo_checkpoints: Path, tmp_path: Path, loads: Loads
) -> Iterator[FlaskClient]:
    """A client of an app with the demo models and a real engine."""
    config = Config(
        checkpoints_dir=demo_checkpoints,
        offline=True,
        device="cpu",
        engine=request.param,
        audio_dir=tmp_path / "audio",
        task_db=tmp_path / "tasks.sqlite3",
        state_db=tmp_path / "state.sqlite3",
    )
    app = create_app(config, cache=ModelCache(Catalog(config), config, loads))
    yield app.test_client()
    loads.gate.set()
    services_of(app).close()


def model_in(client: FlaskClient, name: str = "demo") -> dict[str, Any]:
    return next(model for model in client.get("/models").json["models"] if model["name"] == name)


def await_state(client: FlaskClient, state: str, name: str = "demo") -> dict[str, Any]:
    wait_until(lambda: model_in(client, name)["state"] == state, TIMEOUT_SECONDS)
    return model_in(client, name)


def is_freed(model: weakref.ref[Any]) -> bool:
    gc.collect()
    return model() is None


def post(client: FlaskClient, route: str, status: int = 202) -> Any:
    response = client.post(route)
    assert response.status_code == status, response.json
    return response.json


def test_loading_twice_is_one_load_and_unloading_frees_the_memory(
    client: FlaskClient, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert model_in(client) | {"state": "unloaded", **IDLE} == model_in(client)
    loads.gate.clear()
    for _ in range(2):
        assert post(client, "/models/demo/load")["state"] == "loading"
    assert loads.begun.wait(TIMEOUT_SECONDS)
    loads.gate.set()
    assert await_state(client, "loaded")["loaded"] is True
    assert post(client, "/models/demo/load") == {"name": "demo", "state": "loaded", **IDLE}
    assert len(loads.models) == 1

    (model,) = loads.models
    wait_until(lambda: post(client, "/models/demo/unload")["state"] == "unloaded", TIMEOUT_SECONDS)
    wait_until(lambda: is_freed(model), TIMEOUT_SECONDS)
    assert model_in(client)["loaded"] is False
    assert client.get("/health").json["models_loaded"] == []
    assert post(client, "/models/demo/unload") == {"name": "demo", "state": "unloaded", **IDLE}
    assert {"Loading demo was requested.", "Unloading demo was requested.", "Unloaded demo."} <= set(caplog.messages)

    generated = client.post("/generate", json={"prompt": "slow piano", "model_size": "demo", "duration": 1})
    assert generated.status_code == 200
    assert len(loads.models) == 2


def test_a_model_in_use_is_unloaded_when_its_requests_have_ended_or_not_at_all(
    client: FlaskClient, loads: Loads
) -> None:
    engine = services_of(client.application).engine
    requests = [engine.submit(GenerationParams("demo", "slow piano", 25.0, seed=1))]
    wait_until(lambda: requests[0].progress[0] > 0, TIMEOUT_SECONDS)
    assert "in use" in assert_error(client.post("/models/demo/unload?when_busy=refuse"), 409, "model_busy")["error"]
    assert post(client, "/models/demo/unload?when_busy=wait")["state"] == "unloading"
    assert model_in(client)["loaded"] is True
    assert post(client, "/models/demo/load")["state"] == "loaded", "a load makes it stay"
    assert post(client, "/models/demo/unload")["state"] == "unloading"
    requests.pop().cancel()  # and forget it: its error refers to what was running
    assert await_state(client, "unloaded")["progress"] is None
    (model,) = loads.models
    wait_until(lambda: is_freed(model), TIMEOUT_SECONDS)


def test_a_load_shows_its_progress_and_can_be_ended(client: FlaskClient, loads: Loads) -> None:
    loads.gate.clear()
    post(client, "/models/demo/load")
    assert loads.begun.wait(TIMEOUT_SECONDS)
    loads.report(LoadProgress("downloading", "org/model", 10, 40))
    found = model_in(client)
    assert found["state"] == "loading"
    assert found["progress"] == {
        "phase": "downloading",
        "repository": "org/model",
        "downloaded_bytes": 10,
        "total_bytes": 40,
    }
    assert_error(client.post("/models/demo/unload?when_busy=refuse"), 409, "model_busy")
    assert post(client, "/models/demo/unload")["state"] == "unloading"
    loads.gate.set()
    await_state(client, "unloaded")


def test_a_failed_load_says_why_and_is_tried_again(client: FlaskClient) -> None:
    """The released model is not on this machine, and the server is offline. Its name may be that of its checkpoint."""
    assert post(client, "/models/facebook/musicgen-stereo-large/load")["name"] == "stereo-large"
    failed = await_state(client, "failed", "stereo-large")
    assert "hf download facebook/musicgen-stereo-large" in failed["error"]
    assert post(client, "/models/stereo-large/load")["state"] in ("loading", "failed")


@pytest.mark.parametrize("action", ["load", "unload"])
def test_an_unknown_or_refused_model_is_not_found(tmp_path: Path, action: str) -> None:
    client = fake_app(tmp_path, allow_non_commercial=False).test_client()
    unknown = client.post(f"/models/no/such/{action}")
    assert "There is no model 'no/such'" in assert_error(unknown, 404, "not_found")["error"]
    assert "CC-BY-NC" in assert_error(client.post(f"/models/small/{action}"), 404, "not_found")["error"]


def test_only_administrators_manage_models(tmp_path: Path) -> None:
    app = fake_app(tmp_path)
    client, user, admin = app.test_client(), create_key(app), create_key(app, "admin")
    for action in ("load", "unload"):
        assert_error(client.post(f"/models/demo/{action}"), 401, "unauthorized")
        assert_error(client.post(f"/models/demo/{action}", headers=with_key(user)), 403, "forbidden")
        assert client.post(f"/models/demo/{action}", headers=with_key(admin)).status_code == 202


def test_an_unknown_way_to_unload_is_refused(tmp_path: Path) -> None:
    client = fake_app(tmp_path).test_client()
    assert_error(client.post("/models/demo/unload?when_busy=kill"), 400, "invalid_request", "when_busy")


def test_a_model_of_a_compatible_client_may_have_any_name(tmp_path: Path) -> None:
    """`POST /models/<id>` of Hugging Face's clients generates audio."""
    client = fake_app(tmp_path).test_client()
    assert client.post("/models/demo", json={"inputs": "solo cello"}).status_code == 200
    assert client.post("/models/demo/load").status_code == 202


def test_a_server_whose_workers_generate_manages_no_models() -> None:
    control = ModelControl(None, FakeCache())  # type: ignore[arg-type]
    for act in (control.load, lambda name: control.unload(name, wait=True)):
        with pytest.raises(NoModelsHere, match="Celery workers"):
            act("demo")
    assert control.states(["demo"]) == {"demo": ModelState("unloaded")}
