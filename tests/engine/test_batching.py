"""Many requests in one loop: joining and leaving, order, bounds, and failures that end a single request."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiocraft_api.config import Config
from audiocraft_api.core.errors import (
    Canceled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    ModelUnavailable,
    OutOfMemory,
    QueueFull,
    ShuttingDown,
)
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.codec.batching import FEW_FRAMES, MANY_REQUESTS, SHARED_STEPS
from audiocraft_api.engine.cpu.native_backend import native_slot_bytes
from audiocraft_api.engine.weights import decoder_weights
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from support.engines import (
    SECONDS,
    CodesCodec,
    LoadedModels,
    WrappedBackend,
    codes_engine,
    join_engine_threads,
    noise,
    params,
    runner_over,
    wait_for_codes,
)


class GatedBackend(WrappedBackend):
    """Waits at a gate before each step, and fails for the rows of chosen slots."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.gate = threading.Event()
        self.gate.set()
        self.step_reached = threading.Event()
        self.released: list[int] = []
        self.num_prefills = 0
        self.failures: dict[int, Callable[[], None]] = {}  # by slot; raises
        self.nan_slots: set[int] = set()

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        self.num_prefills += 1
        return super().prefill(slot, position, prefix, tokens)

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        self.step_reached.set()
        assert self.gate.wait(SECONDS)
        for slot in slots:
            self.failures.get(slot, lambda: None)()
        logits = super().decode(slots, tokens, positions)
        for row, slot in enumerate(slots):
            if slot in self.nan_slots:
                logits[row] = float("nan")
        return logits

    def release(self, slot: int) -> None:
        self.released.append(slot)
        super().release(slot)


class GatedEngine:
    """An engine on the demo model whose steps the test controls."""

    def __init__(self, cache: LoadedModels, codec: CodesCodec | None = None, **settings: Any) -> None:
        self.backends: list[GatedBackend] = []
        self.engine = BatchingEngine(
            cache,  # type: ignore[arg-type]
            Config(precision="exact", **settings).engine,
            model_runner_factory=runner_over(self._wrap),
            codec_factory=lambda _: codec or CodesCodec(),
        )

    def _wrap(self, inner: Any) -> GatedBackend:
        self.backends.append(GatedBackend(inner))
        return self.backends[-1]

    @property
    def backend(self) -> GatedBackend:
        return self.backends[-1]

    def submit(self, case: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        return self.engine.submit(case, deadline=deadline)

    def submit_and_pause(self) -> EngineRequest:
        """Submit a request and stop the engine at the request's next step."""
        wait_for_codes(self.submit(params(duration_seconds=1.0)))  # builds the backend
        self.backend.gate.clear()
        self.backend.step_reached.clear()
        request = self.submit(params(seed=99))
        assert self.backend.step_reached.wait(SECONDS)
        return request


@pytest.fixture
def make_engine(cache: LoadedModels) -> Iterator[Callable[..., GatedEngine]]:
    engines: list[GatedEngine] = []

    def make(**settings: Any) -> GatedEngine:
        engines.append(GatedEngine(cache, **settings))
        return engines[-1]

    yield make
    for gated in engines:
        for backend in gated.backends:
            backend.gate.set()
        gated.engine.close()


def codes_alone(cache: LoadedModels, case: Any) -> np.ndarray[Any, Any]:
    engine = codes_engine(cache)
    try:
        return wait_for_codes(engine.submit(case))
    finally:
        engine.close()


# --- order, batch size, progress


def test_requests_beyond_the_batch_size_wait_and_run_in_order(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine(max_batch_requests=1)
    ended: list[int] = []
    first = gated.submit_and_pause()
    others = [gated.submit(params(seed=seed, duration_seconds=1.0)) for seed in range(3)]
    for seed, request in enumerate(others):
        request.add_done_callback(lambda _, seed=seed: ended.append(seed))

    status = gated.engine.status()
    assert (status.num_running, status.num_waiting) == (1, 3)
    assert all(request.state == "waiting" for request in others)
    gated.backend.gate.set()
    for request in [first, *others]:
        wait_for_codes(request)
    assert ended == [0, 1, 2]


def test_a_waiting_request_knows_its_place_in_the_queue(make_engine: Callable[..., GatedEngine]) -> None:
    engine = make_engine(max_batch_requests=1)
    running = engine.submit_and_pause()
    waiting = [engine.submit(params(seed=seed)) for seed in range(2)]
    assert engine.engine.queue_place(running) is None
    first, second = (engine.engine.queue_place(request) for request in waiting)
    assert first
    assert second
    assert (first.position, second.position) == (1, 2)
    assert first.eta_seconds
    assert second.eta_seconds
    assert 0 < first.eta_seconds < second.eta_seconds
    waiting[0].cancel()
    engine.backend.gate.set()
    wait_for_codes(waiting[1])
    assert engine.engine.queue_place(waiting[1]) is None


def test_requests_join_a_running_batch(make_engine: Callable[..., GatedEngine], cache: LoadedModels) -> None:
    gated = make_engine()
    first = gated.submit_and_pause()
    second = gated.submit(params(seed=3, audio_prompt=noise(1.0)))
    gated.backend.gate.set()

    assert np.array_equal(wait_for_codes(first), codes_alone(cache, first.params))
    assert np.array_equal(wait_for_codes(second), codes_alone(cache, second.params))


def test_progress_counts_frames_up_to_the_total(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine()
    request = gated.submit(params(audio_prompt=noise(0.5)))
    seen = []
    for _ in request.chunks():
        seen.append(request.progress)
    request.result(SECONDS)

    assert request.progress == (100, 100)
    assert all(total == 100 for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_request_without_description_uses_one_row(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine(max_batch_requests=1)
    wait_for_codes(gated.submit(params(description="")))
    assert gated.backend.released == [0]
    wait_for_codes(gated.submit(params()))
    assert gated.backend.released == [0, 0, 1]


def test_a_long_prompt_is_prefilled_in_chunks(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine()
    wait_for_codes(gated.submit(params(duration_seconds=6.0, audio_prompt=noise(5.5))))
    assert gated.backend.num_prefills == 2 * 3  # rows × chunks of 276 columns


def test_the_kv_cache_size_limits_how_many_requests_run(
    make_engine: Callable[..., GatedEngine], cache: LoadedModels
) -> None:
    with cache.lease("demo") as model:
        slot_bytes = native_slot_bytes(decoder_weights(model.lm), 1503, "float32")
    gated = make_engine(max_batch_requests=8, kv_cache_bytes=5 * slot_bytes)
    requests = [gated.submit_and_pause(), *(gated.submit(params(seed=seed)) for seed in range(3))]
    gated.backend.gate.set()

    assert gated.backend.num_slots == 5
    for request in requests:
        wait_for_codes(request)
    assert max(gated.backend.released) == 3  # two guided requests at a time


def test_a_kv_cache_too_small_for_one_request_is_reported(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine(kv_cache_bytes=1)
    with pytest.raises(OutOfMemory):
        gated.submit(params()).result(SECONDS)


# --- ends


def test_a_canceled_request_frees_its_rows(make_engine: Callable[..., GatedEngine], cache: LoadedModels) -> None:
    gated = make_engine(max_batch_requests=1)
    running = gated.submit_and_pause()
    waiting = gated.submit(params(seed=3))
    running.cancel()
    gated.backend.gate.set()

    with pytest.raises(Canceled):
        running.result(SECONDS)
    assert np.array_equal(wait_for_codes(waiting), codes_alone(cache, waiting.params))
    assert running.state == "aborted"


def test_a_request_can_be_canceled_at_every_step(make_engine: Callable[..., GatedEngine], cache: LoadedModels) -> None:
    gated = make_engine()
    neighbor = params(duration_seconds=0.2, seed=1)
    expected = wait_for_codes(gated.submit(neighbor))
    num_canceled, num_steps = 0, expected.shape[1] + 3
    for canceled_step in range(num_steps):
        gated.backend.gate.clear()
        requests = [gated.submit(params(duration_seconds=0.2, seed=seed)) for seed in (0, 1)]
        rows: list[EngineRequest] = []

        def count(requests: Any = requests, rows: Any = rows, last: int = 4 * canceled_step) -> None:
            rows.append(requests[0])
            if len(rows) == last + 1:  # two guided requests have four rows
                requests[0].cancel()

        gated.backend.failures = dict.fromkeys(range(8), count)
        gated.backend.gate.set()
        try:
            assert wait_for_codes(requests[0]).shape == expected.shape
        except Canceled:
            num_canceled += 1
        assert np.array_equal(wait_for_codes(requests[1]), expected)
    assert num_canceled >= num_steps - 3  # in the last steps, a request may already have ended
    gated.backend.failures = {}
    assert np.array_equal(wait_for_codes(gated.submit(neighbor)), codes_alone(cache, neighbor))


def test_a_waiting_request_can_be_canceled(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine(max_batch_requests=1)
    running = gated.submit_and_pause()
    waiting = gated.submit(params())
    waiting.cancel()
    gated.backend.gate.set()

    with pytest.raises(Canceled):
        waiting.result(SECONDS)
    wait_for_codes(running)


def test_a_request_can_be_canceled_while_its_conditions_are_computed(
    make_engine: Callable[..., GatedEngine], cache: LoadedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = make_engine()
    entered, leave = threading.Event(), threading.Event()
    with cache.lease("demo") as model:
        compute = model.condition_tensors

    def slow(*args: Any) -> Any:
        entered.set()
        assert leave.wait(SECONDS)
        return compute(*args)

    monkeypatch.setattr(model, "condition_tensors", slow)
    request = gated.submit(params(description="never seen before"))
    assert entered.wait(SECONDS)
    request.cancel()
    with pytest.raises(Canceled):
        request.result(SECONDS)
    leave.set()


def test_a_request_past_its_deadline_ends(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine()
    with pytest.raises(DeadlineExceeded):
        gated.submit(params(), deadline=0.0).result(SECONDS)
    assert wait_for_codes(gated.submit(params())).shape == (4, 100)


def test_a_prompt_that_does_not_fit_ends_only_its_request(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine()
    wrong = gated.submit(params(audio_prompt=noise(3.0)))
    right = gated.submit(params())
    with pytest.raises(InvalidRequest):
        wrong.result(SECONDS)
    assert wait_for_codes(right).shape == (4, 100)


# --- failures


def raise_runtime_error() -> None:
    raise RuntimeError("a kernel failed")


def raise_out_of_memory() -> None:
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    ("cause", "error"), [(raise_runtime_error, GenerationFailed), (raise_out_of_memory, OutOfMemory)]
)
def test_a_failing_row_ends_only_its_request(
    make_engine: Callable[..., GatedEngine], cache: LoadedModels, cause: Callable[[], None], error: type[Exception]
) -> None:
    gated = make_engine()
    first = gated.submit_and_pause()
    gated.backend.failures[2] = cause
    second, third = gated.submit(params(seed=1)), gated.submit(params(seed=2))
    gated.backend.gate.set()

    with pytest.raises(error):
        second.result(SECONDS)
    assert np.array_equal(wait_for_codes(first), codes_alone(cache, first.params))
    assert np.array_equal(wait_for_codes(third), codes_alone(cache, third.params))
    gated.backend.failures.clear()
    assert np.array_equal(wait_for_codes(gated.submit(params(seed=1))), codes_alone(cache, second.params))


def test_nan_logits_end_only_their_request(make_engine: Callable[..., GatedEngine], cache: LoadedModels) -> None:
    gated = make_engine()
    first = gated.submit_and_pause()
    gated.backend.nan_slots.add(3)
    second = gated.submit(params(seed=1))
    gated.backend.gate.set()

    with pytest.raises(GenerationFailed, match="invalid numbers"):
        second.result(SECONDS)
    assert np.array_equal(wait_for_codes(first), codes_alone(cache, first.params))


def test_a_failing_codec_ends_only_its_request(make_engine: Callable[..., GatedEngine]) -> None:
    class FailingOnce(CodesCodec):
        has_failed = False

        def feed(self, codes: Tensor, final: bool = False) -> Any:
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("the codec failed")
            return super().feed(codes, final)

    gated = make_engine(codec=FailingOnce())
    with pytest.raises(GenerationFailed):
        gated.submit(params()).result(SECONDS)
    assert wait_for_codes(gated.submit(params())).shape == (4, 100)


@pytest.mark.parametrize(("num_requests", "num_frames"), [(1, FEW_FRAMES), (MANY_REQUESTS, SHARED_STEPS)])
def test_the_codec_gets_frames_of_few_requests_at_once_and_of_many_requests_once_per_block(
    make_engine: Callable[..., GatedEngine], num_requests: int, num_frames: int
) -> None:
    feeds: list[int] = []

    class RecordingCodec(CodesCodec):
        def feed(self, codes: Tensor, final: bool = False) -> Any:
            feeds.append(0 if final else codes.shape[1])
            return super().feed(codes, final)

    gated = make_engine(codec=RecordingCodec())
    first = gated.submit_and_pause()  # so that the others join in one step
    feeds.clear()
    requests = [first, *(gated.submit(params(seed=seed)) for seed in range(1, num_requests))]
    gated.backend.gate.set()
    for request in requests:
        request.result(SECONDS)
    # A few frames may remain for the next feed.
    assert num_frames <= max(feeds) < num_frames + FEW_FRAMES


def test_a_result_that_cannot_be_joined_ends_only_its_request(
    make_engine: Callable[..., GatedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr(EngineRequest, "finish", lambda _: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(OutOfMemory):
            gated.submit(params(duration_seconds=1.0)).result(SECONDS)
    assert wait_for_codes(gated.submit(params())).shape == (4, 100)


def test_a_model_that_does_not_load_ends_its_requests_and_is_loaded_again_later(cache: LoadedModels) -> None:
    fail = threading.Event()
    fail.set()

    class FailingCache(LoadedModels):
        def lease(self, name: str) -> Any:
            if fail.is_set():
                raise ModelUnavailable("The model does not load.")
            return cache.lease(name)

    engine = codes_engine(FailingCache(lambda _: None))
    with pytest.raises(ModelUnavailable):
        engine.submit(params()).result(SECONDS)
    fail.clear()
    assert wait_for_codes(engine.submit(params())).shape == (4, 100)
    engine.close()


# --- limits, idle engines, closing


def test_the_queue_is_bounded_under_concurrent_submits(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine(max_batch_requests=2, max_waiting=3)
    taken, refused = [gated.submit_and_pause()], []
    start = threading.Barrier(16)

    def submit(seed: int) -> None:
        start.wait()
        try:
            taken.append(gated.submit(params(seed=seed, duration_seconds=1.0)))
        except QueueFull as error:
            refused.append(error)

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(taken) == 2 + 3
    assert len(refused) == 12
    assert all(1.0 <= error.retry_after_seconds <= 600.0 for error in refused)
    gated.backend.gate.set()
    for request in taken:
        wait_for_codes(request)


def test_an_idle_engine_has_no_thread_and_no_lease(
    make_engine: Callable[..., GatedEngine], cache: LoadedModels
) -> None:
    gated = make_engine()
    wait_for_codes(gated.submit(params(duration_seconds=1.0)))
    join_engine_threads()

    assert cache.num_leases == 0
    status = gated.engine.status()
    assert (status.num_running, status.num_waiting) == (0, 0)
    wait_for_codes(gated.submit(params(duration_seconds=1.0)))
    assert len(gated.backends) == 1  # the packed weights were kept


def test_an_unloaded_model_leaves_nothing_behind(make_engine: Callable[..., GatedEngine], cache: LoadedModels) -> None:
    gated = make_engine()
    wait_for_codes(gated.submit(params(duration_seconds=1.0)))
    join_engine_threads()
    runner = weakref.ref(gated.backends.pop())

    cache.unload("demo")
    gc.collect()

    assert runner() is None
    wait_for_codes(gated.submit(params(duration_seconds=1.0)))


def test_a_model_unloaded_as_its_last_request_ends_leaves_nothing_behind(demo_checkpoints: Path) -> None:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu", model_memory_bytes=1)
    cache = ModelCache(Catalog(config), config)
    engine = codes_engine(cache)
    wait_for_codes(engine.submit(params(duration_seconds=1.0)))
    join_engine_threads()
    assert cache.loaded_names() == []
    (status,) = engine.status().models
    assert status.kv_cache_bytes == 0
    engine.close()
    cache.close()


def test_closing_ends_waiting_requests_while_the_model_loads(cache: LoadedModels) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(inner: Any) -> Any:
        entered.set()
        assert leave.wait(SECONDS)
        return inner

    engine = codes_engine(cache, model_runner_factory=runner_over(slow))
    request = engine.submit(params())
    assert entered.wait(SECONDS)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(ShuttingDown):
        request.result(SECONDS)
    assert closing.is_alive()
    leave.set()
    closing.join(SECONDS)


def test_closing_ends_running_and_waiting_requests(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine(max_batch_requests=1)
    requests = [gated.submit_and_pause(), gated.submit(params())]
    closing = threading.Thread(target=gated.engine.close)
    closing.start()
    gated.backend.gate.set()

    for request in requests:
        with pytest.raises(ShuttingDown):
            request.result(SECONDS)
    closing.join(SECONDS)
    with pytest.raises(ShuttingDown):
        gated.submit(params())


def test_closing_with_grace_lets_requests_finish(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine()
    request = gated.submit_and_pause()
    gated.backend.gate.set()
    gated.engine.close(SECONDS)
    assert request.state == "finished"


def test_submitting_does_not_wait_for_a_model_that_is_being_prepared(cache: LoadedModels) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(inner: Any) -> Any:
        entered.set()
        assert leave.wait(SECONDS)
        return inner

    engine = codes_engine(cache, model_runner_factory=runner_over(slow))
    first = engine.submit(params())
    assert entered.wait(SECONDS)
    second = engine.submit(params(seed=1))
    assert engine.status().num_waiting == 2
    leave.set()
    assert wait_for_codes(first).shape == wait_for_codes(second).shape
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_status_reports_a_thread_that_died(make_engine: Callable[..., GatedEngine]) -> None:
    gated = make_engine()
    assert gated.engine.status().is_alive
    request = gated.submit_and_pause()
    assert gated.engine.status().is_alive
    gated.backend.failures[0] = gated.backend.failures[1] = sys.exit  # ends the thread silently

    gated.backend.gate.set()

    join_engine_threads()
    assert not gated.engine.status().is_alive
    assert not request.wait(0)


@pytest.fixture
def real_cache(demo_checkpoints: Path) -> Iterator[ModelCache]:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu")
    cache = ModelCache(Catalog(config), config)
    yield cache
    cache.close()


def test_packed_weights_replace_the_models_own(real_cache: ModelCache, cache: LoadedModels) -> None:
    engine = codes_engine(real_cache)
    with real_cache.lease("demo") as model:
        stored_bytes = model.weight_bytes
        weight = weakref.ref(model.lm.transformer.layers[0].linear1.weight)
        for case in (params(), params(description="slow strings", seed=8)):
            assert np.array_equal(wait_for_codes(engine.submit(case)), codes_alone(cache, case))

        assert model.has_released_decoder_weights
        assert weight() is None
        for part in (model.lm.emb, model.lm.transformer, model.lm.out_norm, model.lm.linears):
            assert all(parameter.is_meta for parameter in part.parameters())
        assert not any(parameter.is_meta for parameter in model.lm.condition_provider.parameters())
        assert 0.9 < model.weight_bytes / stored_bytes < 1.5  # half precision as stored, embeddings in float32
    engine.close()
    assert real_cache.loaded_names() == []


def test_packed_weights_replace_the_models_own_even_if_the_first_request_makes_no_step(
    real_cache: ModelCache,
) -> None:
    engine = codes_engine(real_cache)
    with real_cache.lease("demo") as model:
        with pytest.raises(InvalidRequest):
            engine.submit(params(audio_prompt=noise(3.0))).result(SECONDS)
        join_engine_threads()
        assert model.has_released_decoder_weights
    engine.close()


def test_a_model_without_its_weights_is_loaded_again(demo_checkpoints: Path, cache: LoadedModels) -> None:
    class FailingOnce(ModelCache):
        has_failed = False

        def release_decoder_weights(self, *args: Any) -> None:
            super().release_decoder_weights(*args)
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("failed after the weights were released")

    config = Config(checkpoints_dir=demo_checkpoints, device="cpu")
    failing_cache = FailingOnce(Catalog(config), config)
    engine = codes_engine(failing_cache)
    case = params()
    with pytest.raises(GenerationFailed):
        engine.submit(case).result(SECONDS)
    join_engine_threads()
    assert failing_cache.loaded_names() == []

    assert np.array_equal(wait_for_codes(engine.submit(case)), codes_alone(cache, case))

    assert failing_cache.loaded_names() == ["demo"]
    engine.close()
    failing_cache.close()
