"""Preloading: libraries are imported and models are loaded before the first request."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
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
from support.served import serve, wait_until


def test_libraries_are_imported_in_the_background_before_models_are_loaded() -> None:
    engine = FakeEngine()
    gate, numbers = threading.Event(), []

    def import_libraries() -> None:
        assert gate.wait(10)
        numbers.append(len(engine.submitted))

    engine.import_libraries = import_libraries  # type: ignore[method-assign]
    preloader = Preloader(engine, ["demo"], import_libraries=True)
    preloader.start()
    assert preloader.pending == ("demo",)
    gate.set()
    wait_until(lambda: not preloader.pending)
    assert numbers == [0]
    assert len(engine.submitted) == 1


def test_a_server_imports_libraries_when_it_starts_unless_a_setting_forbids_it(tmp_path: Path) -> None:
    for import_at_start in (True, False):
        engine = FakeEngine()
        services = services_of(fake_app(tmp_path, engine, import_at_start=import_at_start, preload_models="demo"))
        assert engine.num_imports == 0
        services.start()
        wait_until(lambda engine=engine: engine.submitted)
        services.close()
        assert engine.num_imports == import_at_start


def test_models_are_loaded_although_the_import_failed() -> None:
    """Each load tries the import again, and its error says what to do."""
    engine = FakeEngine()

    def import_libraries() -> None:
        raise ModelUnavailable("PyTorch is missing.")

    engine.import_libraries = import_libraries  # type: ignore[method-assign]
    preloader = Preloader(engine, ["demo"], import_libraries=True)
    preloader.start()
    wait_until(lambda: not preloader.pending)
    assert len(engine.submitted) == 1


# Delays the import of torch, or makes it fail, in a separate process: this one has already imported torch.
PRELUDE = """
import sys, threading
from importlib.abc import MetaPathFinder
from pathlib import Path
from audiocraft_api.config import load_config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.create import create_engine
from audiocraft_api.generation.preloading import Preloader
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache

class Finder(MetaPathFinder):
    begun, gate = threading.Event(), threading.Event()
    error = None
    def find_spec(self, name, path, target=None):
        if name == "torch":
            self.begun.set()
            assert self.gate.wait(60)
            if self.error is not None:
                raise self.error

finder = Finder()
sys.meta_path.insert(0, finder)
config = load_config({}, checkpoints_dir=Path(sys.argv[1]), offline=True, device="cpu", engine=sys.argv[2])
cache = ModelCache(Catalog(config), config)
engine = create_engine(cache, config)
preloader = Preloader(engine, [], import_libraries=True)
params = GenerationParams("demo", "slow piano", 0.1, seed=0)
"""
EARLY_REQUEST = """
preloader.start()
assert finder.begun.wait(60)
request = engine.submit(params)
assert engine.status().num_waiting + engine.status().num_running == 1
assert not request.wait(0.2)
assert "torch" not in sys.modules
canceled = engine.submit(params)
canceled.cancel()
finder.gate.set()
assert request.result(240).waveform.shape[1] > 0
engine.close()
"""
BROKEN_LIBRARY = """
finder.error = ImportError("libtorch.so: cannot open shared object file")
finder.gate.set()
preloader.start()
for _ in range(2):
    try:
        engine.submit(params).result(60)
    except ModelUnavailable as error:
        assert "Install the locked requirements again" in error.message and error.status == 503, error.message
    else:
        sys.exit("no error")
finder.error = None
assert engine.submit(params).result(240)
engine.close()
"""


@pytest.mark.parametrize("engine", ["batching", pytest.param("plain", marks=pytest.mark.fault)])
@pytest.mark.parametrize("script", [EARLY_REQUEST, BROKEN_LIBRARY], ids=["early request", "broken library"])
def test_a_request_waits_for_the_import_in_the_engines_thread_and_reports_its_failure(
    script: str, engine: str, demo_checkpoints: Path
) -> None:
    command = [sys.executable, "-c", PRELUDE + script, str(demo_checkpoints), engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.timing
def test_health_responds_soon_after_the_start_and_while_libraries_are_imported(tmp_path: Path) -> None:
    """The two delays are at most 2 s and 1 s on an idle machine with two cores; the bounds are at least three times
    larger."""
    started = time.monotonic()
    with serve(tmp_path, import_at_start=True) as server:
        assert time.monotonic() - started < 6
        seconds = []
        while "Imported PyTorch and audiocraft" not in server.log:
            requested_at = time.monotonic()
            assert server.get("/health").json()["models_loaded"] == []
            seconds.append(time.monotonic() - requested_at)
        assert len(seconds) > 20
        assert max(seconds) < 5
        assert "libtorch" in Path(f"/proc/{server.worker_pid()}/maps").read_text()
        assert server.terminate() == 0


def test_the_server_is_not_ready_until_its_models_are_loaded(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.open_gate.clear()
    app = fake_app(tmp_path, engine, preload_models="small, demo")
    client, services = app.test_client(), services_of(app)
    assert client.get("/ready").status_code == 200  # preloading has not started
    services.start()
    try:
        response = client.get("/ready")
        assert (response.status_code, response.json["code"]) == (503, "model_loading")
        assert "small, demo" in response.json["error"]
        assert client.get("/health").status_code == 200
        engine.open_gate.set()
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert [request.params.model for request in engine.submitted] == ["small", "demo"]
    finally:
        services.close()


def test_a_model_that_cannot_be_loaded_is_logged_and_no_longer_pending(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.failure = ModelUnavailable("The checkpoint is missing.", 60)
    preloader = Preloader(engine, ["small", "demo"])
    preloader.start()
    wait_until(lambda: not preloader.pending)
    assert len(engine.submitted) == 2
    assert "small could not be preloaded" in caplog.text


def test_closing_the_engine_stops_preloading(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.open_gate.clear()
    preloader = Preloader(engine, ["small", "demo"])
    preloader.start()
    wait_until(lambda: engine.submitted)
    engine.close()
    engine.open_gate.set()
    assert len(engine.submitted) == 1
    assert "could not" not in caplog.text


def test_a_preloaded_model_is_loaded_before_the_first_request(tmp_path: Path, demo_checkpoints: Path) -> None:
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
def test_preloading_a_model_that_is_not_served_prevents_the_start(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Catalog(load_config({}, **settings))
