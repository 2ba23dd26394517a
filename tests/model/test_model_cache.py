"""The cache of loaded models: one load for all callers, leases, idle time, memory budget. The models are stand-ins."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from audiocraft_api.config import Config, load_config
from audiocraft_api.core.errors import InvalidRequest, ModelBusy, ModelUnavailable, ShuttingDown
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.model_cache import ModelCache, Residency, free_memory

WAIT_SECONDS = 10.0


class Loader:
    """Loads stand-ins of 100 bytes: waits for `gate`, fails with `error`, and records the loads."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.error: Exception | None = None
        self.loads: list[str] = []

    def __call__(self, spec: ModelSpec, _catalog: Catalog, _config: Config, _report: Any) -> Any:
        self.loads.append(spec.name)
        self.begun.set()
        assert self.gate.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            spec=spec, weight_bytes=100, revision=f"r{len(self.loads)}", device=SimpleNamespace(type="cpu")
        )


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def make_cache(loader: Loader) -> Iterator[Callable[..., ModelCache]]:
    caches: list[ModelCache] = []

    def make(free_memory: Callable[[], None] = free_memory, **settings: Any) -> ModelCache:
        config = load_config({}, **settings)
        caches.append(ModelCache(Catalog(config), config, loader, free_memory))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def use(cache: ModelCache, name: str) -> Any:
    with cache.lease(name) as model:
        return model


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; return whether it does."""
    deadline = time.monotonic() + WAIT_SECONDS
    pause = threading.Event()
    while not condition() and time.monotonic() < deadline:
        pause.wait(0.005)
    return condition()


def is_blocked(thread: threading.Thread) -> bool:
    """Return whether a thread waits for a condition or an event."""
    assert thread.ident is not None
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code is threading.Condition.wait.__code__


def test_concurrent_leases_load_a_model_once(make_cache: Callable[..., ModelCache], loader: Loader) -> None:
    cache = make_cache()
    loader.gate.clear()
    models: list[Any] = []
    threads = [threading.Thread(target=lambda: models.append(use(cache, "demo"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    assert loader.begun.wait(WAIT_SECONDS)
    loader.gate.set()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert loader.loads == ["demo"]
    assert len(models) == 16
    assert all(model is models[0] for model in models)


def test_states_can_be_read_while_a_model_loads(make_cache: Callable[..., ModelCache], loader: Loader) -> None:
    cache = make_cache()
    assert cache.device == "auto"
    use(cache, "demo")
    loader.begun.clear()
    loader.gate.clear()
    thread = threading.Thread(target=use, args=(cache, "small"))
    thread.start()
    assert loader.begun.wait(WAIT_SECONDS)
    assert cache.loaded_names() == ["demo"]
    states = cache.states()
    assert (states["demo"], states["small"], states["large"]) == ("loaded", "loading", "unloaded")
    assert (cache.revision("demo"), cache.revision("small"), cache.revision("unknown")) == ("r1", None, None)
    assert cache.device == "cpu"
    loader.gate.set()
    thread.join(WAIT_SECONDS)
    assert set(cache.loaded_names()) == {"demo", "small"}


def test_a_failed_load_fails_every_waiter_and_the_next_lease_tries_again(
    make_cache: Callable[..., ModelCache], loader: Loader
) -> None:
    cache = make_cache()
    loader.gate.clear()
    loader.error = ModelUnavailable("The disk is full.", 60)
    errors: list[ModelUnavailable] = []

    def fail_to_lease() -> None:
        with pytest.raises(ModelUnavailable, match="disk is full") as caught:
            use(cache, "demo")
        errors.append(caught.value)

    threads = [threading.Thread(target=fail_to_lease) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert loader.begun.wait(WAIT_SECONDS)
    assert eventually(lambda: all(is_blocked(thread) for thread in threads))
    loader.gate.set()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert loader.loads == ["demo"]
    assert len({id(error) for error in errors}) == 4
    assert cache.states()["demo"] == "failed"
    loader.error = None
    assert use(cache, "demo").spec.name == "demo"
    assert cache.states()["demo"] == "loaded"


def test_a_load_that_raises_an_unexpected_error_can_be_repeated(
    make_cache: Callable[..., ModelCache], loader: Loader
) -> None:
    cache = make_cache()
    loader.error = RuntimeError("unexpected")
    with pytest.raises(RuntimeError):
        use(cache, "demo")
    loader.error = None
    assert use(cache, "demo") is not None


def test_an_unknown_or_forbidden_model_is_refused_without_a_load(
    make_cache: Callable[..., ModelCache], loader: Loader
) -> None:
    cache = make_cache(allow_non_commercial=False)
    for name in ("unknown", "small"):
        with pytest.raises(InvalidRequest):
            use(cache, name)
    assert loader.loads == []


def test_the_least_recently_used_model_is_unloaded_over_the_budget(
    make_cache: Callable[..., ModelCache], loader: Loader
) -> None:
    cache = make_cache(model_memory_bytes=250)
    unloaded: list[str] = []
    cache.on_unload(unloaded.append)
    for name in ("demo", "small", "demo", "large"):
        use(cache, name)
    assert unloaded == ["small"]
    assert set(cache.loaded_names()) == {"demo", "large"}
    use(cache, "small")
    assert loader.loads == ["demo", "small", "large", "small"]


def test_a_leased_model_stays_even_over_the_budget(make_cache: Callable[..., ModelCache]) -> None:
    cache = make_cache(model_memory_bytes=50)
    with cache.lease("demo"):
        with cache.lease("demo"), cache.lease("small"):
            assert set(cache.loaded_names()) == {"demo", "small"}
        assert cache.loaded_names() == ["demo"]
    assert cache.loaded_names() == []


def test_an_idle_model_is_unloaded_and_a_leased_one_is_not(make_cache: Callable[..., ModelCache]) -> None:
    cache = make_cache(model_idle_seconds=0.05)
    unloaded = threading.Event()
    cache.on_unload(lambda name: unloaded.set() if name == "small" else None)
    with cache.lease("demo"):
        use(cache, "small")
        assert unloaded.wait(WAIT_SECONDS)
        assert cache.loaded_names() == ["demo"]
    assert eventually(lambda: cache.loaded_names() == [])


def test_close_ends_the_thread_and_unloads(make_cache: Callable[..., ModelCache]) -> None:
    cache = make_cache(model_idle_seconds=100)
    with cache.lease("demo"):
        use(cache, "small")
        assert "model-reaper" in {thread.name for thread in threading.enumerate()}
        cache.close()
        assert cache.loaded_names() == ["demo"]
        assert "model-reaper" not in {thread.name for thread in threading.enumerate()}
    assert cache.loaded_names() == []
    with pytest.raises(ShuttingDown):
        use(cache, "demo")


def test_no_lease_gets_an_unloaded_model_under_load(make_cache: Callable[..., ModelCache]) -> None:
    """Many threads, three models, memory for one."""
    cache = make_cache(model_memory_bytes=100, free_memory=lambda: None)  # it takes a fifth of a second each time
    faults: list[str] = []

    def work(seed: int) -> None:
        for turn in range(100):
            name = ("demo", "small", "large")[(seed + turn) % 3]
            with cache.lease(name) as model:
                if model.spec.name != name or name not in cache.loaded_names():
                    faults.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert not [thread for thread in threads if thread.is_alive()]
    assert faults == []
    assert len(cache.loaded_names()) <= 1


def test_an_unload_waits_for_the_last_lease_unless_told_otherwise(make_cache: Callable[..., ModelCache]) -> None:
    cache = make_cache()
    cache.unload("demo", wait=False)
    with cache.lease("demo"), cache.lease("demo"):
        with pytest.raises(ModelBusy, match="in use"):
            cache.unload("demo", wait=False)
        cache.unload("demo", wait=True)
        assert cache.residency("demo").is_unloading
        assert cache.loaded_names() == ["demo"]
    assert cache.residency("demo") == Residency("unloaded")
    use(cache, "demo")
    assert cache.loaded_names() == ["demo"]
    cache.unload("demo", wait=True)
    assert cache.loaded_names() == []


def test_an_unload_that_waits_can_be_forgotten(make_cache: Callable[..., ModelCache]) -> None:
    cache = make_cache()
    with cache.lease("demo"):
        cache.unload("demo", wait=True)
        cache.keep("demo")
    assert cache.residency("demo") == Residency("loaded")


def test_an_unload_during_a_load_takes_place_after_it(make_cache: Callable[..., ModelCache], loader: Loader) -> None:
    cache = make_cache()
    loader.gate.clear()
    thread = threading.Thread(target=use, args=(cache, "demo"))
    thread.start()
    assert loader.begun.wait(WAIT_SECONDS)
    cache.unload("demo", wait=True)
    assert cache.residency("demo").is_unloading
    loader.gate.set()
    thread.join(WAIT_SECONDS)
    assert cache.residency("demo") == Residency("unloaded")


def test_a_failed_load_is_not_unloading_and_says_why(make_cache: Callable[..., ModelCache], loader: Loader) -> None:
    cache = make_cache()
    loader.error = ModelUnavailable("No disk.")
    loader.gate.clear()

    def fail() -> None:
        with pytest.raises(ModelUnavailable):
            use(cache, "demo")

    thread = threading.Thread(target=fail)
    thread.start()
    assert loader.begun.wait(WAIT_SECONDS)
    cache.unload("demo", wait=True)
    loader.gate.set()
    thread.join(WAIT_SECONDS)
    assert cache.residency("demo") == Residency("failed", "No disk.")
