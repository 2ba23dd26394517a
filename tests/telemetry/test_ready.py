"""`/ready` fails while no work should come, says why, and does not fail because there is much to do."""

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

SECONDS = 60.0


class StatedEngine(FakeEngine):
    """Is in the state that a test wants."""

    def __init__(self, *models: ModelStatus) -> None:
        super().__init__()
        self.models = models

    def status(self) -> EngineStatus:
        return EngineStatus(num_waiting=100, num_running=100, models=self.models)


class StatedCache(FakeCache):
    def __init__(self, **states: str) -> None:
        self._states = states

    def states(self) -> dict[str, str]:
        return self._states


def reason(engine: Engine, cache: Any = None, pending: tuple[str, ...] = (), **settings: Any) -> str | None:
    """Return the code of what keeps a process from being ready."""
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
    assert reason(StatedEngine(ModelStatus("small", stalled_seconds=59.0))) is None


def test_an_engine_without_a_pass_for_too_long_is_not_ready() -> None:
    assert reason(StatedEngine(ModelStatus("small", stalled_seconds=61.0))) == "engine_stalled"
    assert reason(StatedEngine(ModelStatus("small", stalled_seconds=61.0)), engine_stall_seconds=70) is None


def test_an_engine_that_has_died_is_not_ready() -> None:
    engine = FakeEngine()
    engine.is_alive = False
    assert reason(engine) == "engine_died"


def test_it_is_not_ready_while_the_first_model_is_loaded_or_prepared() -> None:
    assert reason(FakeEngine(), StatedCache(small="loading")) == "model_loading"
    assert reason(StatedEngine(ModelStatus("small", is_loading=True)), StatedCache(small="loaded")) == "model_loading"


def test_another_load_beside_a_model_that_serves_is_no_matter() -> None:
    assert reason(FakeEngine(), StatedCache(small="loaded", large="loading")) is None
    assert reason(StatedEngine(ModelStatus("large", is_loading=True)), StatedCache(small="loaded")) is None


def test_a_server_that_has_loaded_nothing_yet_or_failed_to_is_ready() -> None:
    assert reason(FakeEngine(), StatedCache(small="unloaded", large="failed")) is None


def test_it_is_not_ready_before_what_is_to_be_loaded_first() -> None:
    assert reason(FakeEngine(), StatedCache(small="loaded", large="unloaded"), pending=("large",)) == "model_loading"


def test_the_route_tells_the_reason(tmp_path: Path) -> None:
    app = fake_app(tmp_path, StatedEngine(ModelStatus("small", stalled_seconds=100.0)))
    response = app.test_client().get("/ready")
    assert_error(response, 503, "engine_stalled")
    assert "small" in response.json["error"]
    assert app.test_client().get("/health").status_code == 200
    services_of(app).close()
    assert_error(app.test_client().get("/ready"), 503, "shutting_down")


@pytest.mark.parametrize("engine_name", ["batching", "plain"])
def test_a_load_of_any_length_is_loading_and_no_stall(
    demo_checkpoints: Path, engine_name: str, tmp_path: Path, stopped: threading.Event
) -> None:
    loading = threading.Event()

    def load(spec: ModelSpec, catalog: Catalog, config: Config) -> Any:
        loading.set()
        assert stopped.wait(SECONDS)
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
    assert loading.wait(SECONDS)
    assert [model.stalled_seconds for model in services.engine.status().models] == [0]
    assert_error(client.get("/ready"), 503, "model_loading")
    stopped.set()
    request.result(SECONDS)
    wait_until(lambda: client.get("/ready").status_code == 200)
    services.close()


@pytest.fixture
def config(demo_checkpoints: Path) -> Config:
    return Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True, engine_stall_seconds=0.5)


@pytest.mark.parametrize("kind", [BatchingEngine, PlainEngine])
def test_a_step_that_hangs_is_a_stall_until_it_goes_on(
    config: Config,
    kind: type[BatchingEngine] | type[PlainEngine],
    stopped: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ModelCache(Catalog(config), config)
    engine = kind(cache, config.engine)
    engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1)).result(SECONDS)
    hung = threading.Event()

    def hang(*_: Any) -> None:
        hung.set()
        assert stopped.wait(SECONDS)

    if kind is BatchingEngine:
        step = batch.Batch.step
        monkeypatch.setattr(batch.Batch, "step", lambda self: (hang(), step(self))[1])
    else:
        with cache.lease("demo") as model:
            generate_codes = model.generate_codes
            monkeypatch.setattr(model, "generate_codes", lambda *args: (hang(), generate_codes(*args))[1])
    request = engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1))
    try:
        assert hung.wait(SECONDS)
        wait_until(lambda: reason(engine, cache, engine_stall_seconds=0.5) == "engine_stalled")
        stopped.set()
        request.result(SECONDS)
        wait_until(lambda: reason(engine, cache, engine_stall_seconds=0.5) is None)
    finally:
        stopped.set()
        engine.close()
        cache.close()


@pytest.mark.parametrize("kind", [BatchingEngine, PlainEngine])
def test_work_that_comes_and_goes_never_takes_readiness_away(
    config: Config, kind: type[BatchingEngine] | type[PlainEngine]
) -> None:
    cache = ModelCache(Catalog(config), config)
    engine = kind(cache, config.engine)
    reasons: set[str | None] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):  # not in every moment: the work goes on beside it
            reasons.add(reason(engine, cache))

    engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=1)).result(SECONDS)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for seed in range(10):
            engine.submit(GenerationParams("demo", "solo cello", 0.1, seed=seed)).result(SECONDS)
    finally:
        done.set()
        watcher.join()
        engine.close()
        cache.close()
    assert reasons == {None}


@pytest.fixture
def stopped() -> Iterator[threading.Event]:
    """Set at the latest when the test ends: nothing waits on."""
    event = threading.Event()
    yield event
    event.set()
