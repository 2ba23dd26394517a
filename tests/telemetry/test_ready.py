"""`/ready` fails with a reason while a process should not receive work. A busy process is ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine, EngineStatus, ModelStatus
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine import batch
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.plain import PlainEngine
from audiocraft_api.factory import create_app
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.loading import load_model
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.telemetry.health import Health
from audiocraft_api.web.services import services_of
from support.fakes import FakeCache, FakeEngine
from support.http import assert_error, fake_app
from support.served import wait_until

TIMEOUT_SECONDS = 60.0


class StatusEngine(FakeEngine):
    """An engine with the given status."""

    def __init__(self, *models: ModelStatus) -> None:
        super().__init__()
        self.models = models

    def status(self) -> EngineStatus:
        return EngineStatus(num_waiting=100, num_running=100, models=self.models)


class StatesCache(FakeCache):
    def __init__(self, **states: str) -> None:
        self._states = states

    def states(self) -> dict[str, str]:
        return self._states


def not_ready_code(engine: Engine, cache: Any = None, pending: tuple[str, ...] = (), **settings: Any) -> str | None:
    """Return the code of the error that says why a process is not ready, or None if it is ready."""
    health = Health(
        engine.status,
        cache or FakeCache(),
        Config(**settings).telemetry,
        threading.Event(),
        pending_models=lambda: pending,
    )
    try:
        health.check_ready()
    except Unavailable as error:
        return error.code
    return None


def test_a_busy_engine_is_ready() -> None:
    assert not_ready_code(StatusEngine(ModelStatus("small", stalled_seconds=59.0))) is None


def test_an_engine_without_progress_for_too_long_is_not_ready() -> None:
    assert not_ready_code(StatusEngine(ModelStatus("small", stalled_seconds=61.0))) == "engine_stalled"
    assert not_ready_code(StatusEngine(ModelStatus("small", stalled_seconds=61.0)), engine_stall_seconds=70) is None


def test_an_engine_that_has_died_is_not_ready() -> None:
    engine = FakeEngine()
    engine.is_alive = False
    assert not_ready_code(engine) == "engine_died"


def test_a_process_is_not_ready_while_its_first_model_is_loaded_or_prepared() -> None:
    assert not_ready_code(FakeEngine(), StatesCache(small="loading")) == "model_loading"
    assert (
        not_ready_code(StatusEngine(ModelStatus("small", is_loading=True)), StatesCache(small="loaded"))
        == "model_loading"
    )


def test_a_process_with_a_loaded_model_stays_ready_while_it_loads_another() -> None:
    assert not_ready_code(FakeEngine(), StatesCache(small="loaded", large="loading")) is None
    assert not_ready_code(StatusEngine(ModelStatus("large", is_loading=True)), StatesCache(small="loaded")) is None


def test_a_process_without_a_loaded_model_is_ready() -> None:
    assert not_ready_code(FakeEngine(), StatesCache(small="unloaded", large="failed")) is None


def test_a_process_is_not_ready_until_all_preloaded_models_are_loaded() -> None:
    assert (
        not_ready_code(FakeEngine(), StatesCache(small="loaded", large="unloaded"), pending=("large",))
        == "model_loading"
    )


def test_the_route_reports_the_reason(tmp_path: Path) -> None:
    app = fake_app(tmp_path, StatusEngine(ModelStatus("small", stalled_seconds=100.0)))
    response = app.test_client().get("/ready")
    assert_error(response, 503, "engine_stalled")
    assert "small" in response.json["error"]
    assert app.test_client().get("/health").status_code == 200
    services_of(app).close()
    assert_error(app.test_client().get("/ready"), 503, "shutting_down")


@pytest.mark.parametrize("engine_name", ["batching", "plain"])
def test_a_long_load_counts_as_loading_and_not_as_a_stall(
    demo_checkpoints: Path, engine_name: str, tmp_path: Path, resume: threading.Event
) -> None:
    loading = threading.Event()

    def load(spec: ModelSpec, catalog: Catalog, config: Config, _report: Any) -> Any:
        loading.set()
        assert resume.wait(TIMEOUT_SECONDS)
        return load_model(spec, catalog, config)

    config = Config(
        checkpoints_dir=demo_checkpoints,
        device="cpu",
        offline=True,
        engine=engine_name,
        engine_stall_seconds=0.5,
        audio_dir=tmp_path / "audio",
        task_db=tmp_path / "tasks.sqlite3",
        state_db=tmp_path / "state.sqlite3",
    )
    app = create_app(config, cache=ModelCache(Catalog(config), config, load))
    client, services = app.test_client(), services_of(app)
    request = services.engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1))
    assert loading.wait(TIMEOUT_SECONDS)
    assert [model.stalled_seconds for model in services.engine.status().models] == [0]
    assert_error(client.get("/ready"), 503, "model_loading")
    resume.set()
    request.result(TIMEOUT_SECONDS)
    wait_until(lambda: client.get("/ready").status_code == 200)
    services.close()


@pytest.fixture
def config(demo_checkpoints: Path) -> Config:
    return Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True, engine_stall_seconds=0.5)


@pytest.mark.parametrize("kind", [BatchingEngine, PlainEngine])
def test_a_step_that_hangs_is_a_stall_until_it_continues(
    config: Config,
    kind: type[BatchingEngine] | type[PlainEngine],
    resume: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ModelCache(Catalog(config), config)
    engine = kind(cache, config.engine)
    engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1)).result(TIMEOUT_SECONDS)
    hung = threading.Event()

    def hang(*_: Any) -> None:
        hung.set()
        assert resume.wait(TIMEOUT_SECONDS)

    if kind is BatchingEngine:
        step = batch.Batch.step
        monkeypatch.setattr(batch.Batch, "step", lambda self: (hang(), step(self))[1])
    else:
        with cache.lease("demo") as model:
            generate_codes = model.generate_codes
            monkeypatch.setattr(model, "generate_codes", lambda *args: (hang(), generate_codes(*args))[1])
    request = engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1))
    try:
        assert hung.wait(TIMEOUT_SECONDS)
        wait_until(lambda: not_ready_code(engine, cache, engine_stall_seconds=0.5) == "engine_stalled")
        resume.set()
        request.result(TIMEOUT_SECONDS)
        wait_until(lambda: not_ready_code(engine, cache, engine_stall_seconds=0.5) is None)
    finally:
        resume.set()
        engine.close()
        cache.close()


@pytest.mark.parametrize("kind", [BatchingEngine, PlainEngine])
def test_a_process_stays_ready_while_requests_start_and_end(
    config: Config, kind: type[BatchingEngine] | type[PlainEngine]
) -> None:
    cache = ModelCache(Catalog(config), config)
    engine = kind(cache, config.engine)
    codes: set[str | None] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):  # pauses, so that the engine gets CPU time
            codes.add(not_ready_code(engine, cache))

    engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1)).result(TIMEOUT_SECONDS)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for seed in range(10):
            engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=seed)).result(TIMEOUT_SECONDS)
    finally:
        done.set()
        watcher.join()
        engine.close()
        cache.close()
    assert codes == {None}


@pytest.fixture
def resume() -> Iterator[threading.Event]:
    """Lets hanging calls continue. Set at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()
