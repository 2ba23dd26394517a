"""Many requests in one loop: joining and leaving, order, bounds, and failures that stay one request's own."""

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
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.codec.batching import FEW_FRAMES, SHARED_STEPS
from audiocraft_api.engine.codec.lstm import NUM_ROWS
from audiocraft_api.engine.cpu.native_backend import native_slot_bytes
from audiocraft_api.engine.weights import decoder_weights
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from support.engines import (
    SECONDS,
    CodesDecoder,
    OneModelEach,
    WrappedRunner,
    codes_of,
    demo_model,
    noise,
    params,
    stepper_over,
)

pytestmark = pytest.mark.usefixtures("_codes_as_sound")


class SteeredRunner(WrappedRunner):
    """Waits at a gate before each step, and fails as told for the rows of chosen slots."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.gate = threading.Event()
        self.gate.set()
        self.stepped = threading.Event()
        self.released: list[int] = []
        self.num_prefills = 0
        self.fail: dict[int, Callable[[], None]] = {}  # slot -> raises
        self.poison: set[int] = set()  # slots whose logits are not numbers

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        self.num_prefills += 1
        return super().prefill(slot, position, prefix, tokens)

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        self.stepped.set()
        assert self.gate.wait(SECONDS)
        for slot in slots:
            self.fail.get(slot, lambda: None)()
        logits = super().decode(slots, tokens, positions)
        for row, slot in enumerate(slots):
            if slot in self.poison:
                logits[row] = float("nan")
        return logits

    def release(self, slot: int) -> None:
        self.released.append(slot)
        super().release(slot)


class Rig:
    """An engine on the demo model with a steered runner."""

    def __init__(self, cache: OneModelEach, **settings: Any) -> None:
        self.runners: list[SteeredRunner] = []
        self.cache = cache
        self.engine = BatchingEngine(cache, Config(precision="exact", **settings), stepper_over(self._wrap))

    def _wrap(self, inner: Any) -> SteeredRunner:
        self.runners.append(SteeredRunner(inner))
        return self.runners[-1]

    @property
    def runner(self) -> SteeredRunner:
        return self.runners[-1]

    def hold(self) -> EngineRequest:
        """Submit a request and hold it in its next step; return it."""
        codes_of(self.engine.submit(params(duration_seconds=1.0)))  # makes the runner
        self.runner.gate.clear()
        self.runner.stepped.clear()
        request = self.engine.submit(params(seed=99))
        assert self.runner.stepped.wait(SECONDS)
        return request


@pytest.fixture
def _codes_as_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiocraft_api.engine.executor.make_decoder", lambda _: CodesDecoder())


@pytest.fixture
def cache(demo_checkpoints: Path) -> OneModelEach:
    return OneModelEach(lambda name: demo_model(demo_checkpoints, name))


@pytest.fixture
def make_rig(cache: OneModelEach) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**settings: Any) -> Rig:
        rigs.append(Rig(cache, **settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        for runner in rig.runners:
            runner.gate.set()
        rig.engine.close()


def alone(cache: OneModelEach, case: Any) -> np.ndarray[Any, Any]:
    engine = BatchingEngine(cache, Config(precision="exact"))
    try:
        return codes_of(engine.submit(case))
    finally:
        engine.close()


# --- order, places, progress


def test_requests_beyond_the_places_wait_and_run_in_order(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_batch_requests=1)
    ended: list[int] = []
    first = rig.hold()
    others = [rig.engine.submit(params(seed=seed, duration_seconds=1.0)) for seed in range(3)]
    for seed, request in enumerate(others):
        request.add_done_callback(lambda _, seed=seed: ended.append(seed))

    status = rig.engine.status()
    assert (status.num_running, status.num_waiting) == (1, 3)
    assert all(request.state == "waiting" for request in others)
    rig.runner.gate.set()
    for request in [first, *others]:
        codes_of(request)
    assert ended == [0, 1, 2]


def test_requests_join_a_batch_that_runs(make_rig: Callable[..., Rig], cache: OneModelEach) -> None:
    rig = make_rig()
    first = rig.hold()
    second = rig.engine.submit(params(seed=3, audio_prompt=noise(1.0)))
    rig.runner.gate.set()

    assert np.array_equal(codes_of(first), alone(cache, first.params))
    assert np.array_equal(codes_of(second), alone(cache, second.params))


def test_progress_counts_frames_up_to_the_total(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    request = rig.engine.submit(params(audio_prompt=noise(0.5)))
    seen = []
    for _ in request.chunks():
        seen.append(request.progress)
    request.result(SECONDS)

    assert request.progress == (100, 100)
    assert all(total == 100 for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_request_without_description_takes_one_row(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_batch_requests=1)
    codes_of(rig.engine.submit(params(description="")))
    assert rig.runner.released == [0]
    codes_of(rig.engine.submit(params()))
    assert rig.runner.released == [0, 0, 1]


def test_a_long_prompt_is_prefilled_in_pieces(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    codes_of(rig.engine.submit(params(duration_seconds=6.0, audio_prompt=noise(5.5))))
    assert rig.runner.num_prefills == 2 * 3  # rows, pieces of 276 columns


def test_memory_for_keys_and_values_decides_how_many_run(make_rig: Callable[..., Rig], cache: OneModelEach) -> None:
    with cache.lease("demo") as model:
        slot_bytes = native_slot_bytes(decoder_weights(model.lm), 1503, "float32")
    rig = make_rig(max_batch_requests=8, kv_cache_bytes=5 * slot_bytes)
    requests = [rig.hold(), *(rig.engine.submit(params(seed=seed)) for seed in range(3))]
    rig.runner.gate.set()

    assert rig.runner.num_slots == 5
    for request in requests:
        codes_of(request)
    assert max(rig.runner.released) == 3  # two guided requests at a time


def test_too_little_memory_for_one_request_is_said(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(kv_cache_bytes=1)
    with pytest.raises(OutOfMemory):
        rig.engine.submit(params()).result(SECONDS)


# --- ends


def test_a_canceled_request_frees_its_rows(make_rig: Callable[..., Rig], cache: OneModelEach) -> None:
    rig = make_rig(max_batch_requests=1)
    running = rig.hold()
    waiting = rig.engine.submit(params(seed=3))
    running.cancel()
    rig.runner.gate.set()

    with pytest.raises(Canceled):
        running.result(SECONDS)
    assert np.array_equal(codes_of(waiting), alone(cache, waiting.params))
    assert running.state == "aborted"


def test_a_waiting_request_can_be_canceled(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_batch_requests=1)
    running = rig.hold()
    waiting = rig.engine.submit(params())
    waiting.cancel()
    rig.runner.gate.set()

    with pytest.raises(Canceled):
        waiting.result(SECONDS)
    codes_of(running)


def test_a_request_can_be_canceled_while_its_conditions_are_computed(
    make_rig: Callable[..., Rig], cache: OneModelEach, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    entered, leave = threading.Event(), threading.Event()
    with cache.lease("demo") as model:
        compute = model.condition_tensors

    def slow(*args: Any) -> Any:
        entered.set()
        assert leave.wait(SECONDS)
        return compute(*args)

    monkeypatch.setattr(model, "condition_tensors", slow)
    request = rig.engine.submit(params(description="never seen before"))
    assert entered.wait(SECONDS)
    request.cancel()
    with pytest.raises(Canceled):
        request.result(SECONDS)
    leave.set()


def test_a_late_request_ends_with_its_deadline(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    with pytest.raises(DeadlineExceeded):
        rig.engine.submit(params(), deadline=0.0).result(SECONDS)
    assert codes_of(rig.engine.submit(params())).shape == (4, 100)


def test_a_prompt_that_does_not_fit_ends_its_request_alone(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    wrong = rig.engine.submit(params(audio_prompt=noise(3.0)))
    right = rig.engine.submit(params())
    with pytest.raises(InvalidRequest):
        wrong.result(SECONDS)
    assert codes_of(right).shape == (4, 100)


# --- failures


def break_down() -> None:
    raise RuntimeError("a kernel failed")


def run_out() -> None:
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(("cause", "error"), [(break_down, GenerationFailed), (run_out, OutOfMemory)])
def test_a_failing_row_ends_its_request_alone(
    make_rig: Callable[..., Rig], cache: OneModelEach, cause: Callable[[], None], error: type[Exception]
) -> None:
    rig = make_rig()
    first = rig.hold()
    rig.runner.fail[2] = cause
    second, third = rig.engine.submit(params(seed=1)), rig.engine.submit(params(seed=2))
    rig.runner.gate.set()

    with pytest.raises(error):
        second.result(SECONDS)
    assert np.array_equal(codes_of(first), alone(cache, first.params))
    assert np.array_equal(codes_of(third), alone(cache, third.params))
    rig.runner.fail.clear()
    assert np.array_equal(codes_of(rig.engine.submit(params(seed=1))), alone(cache, second.params))


def test_logits_that_are_not_numbers_end_their_request_alone(make_rig: Callable[..., Rig], cache: OneModelEach) -> None:
    rig = make_rig()
    first = rig.hold()
    rig.runner.poison.add(3)
    second = rig.engine.submit(params(seed=1))
    rig.runner.gate.set()

    with pytest.raises(GenerationFailed, match="overflowed"):
        second.result(SECONDS)
    assert np.array_equal(codes_of(first), alone(cache, first.params))


def test_a_codec_that_fails_ends_its_request_alone(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    calls = []

    def feed(_: CodesDecoder, codes: Tensor, final: bool = False) -> Any:
        calls.append(final)
        if len(calls) == 1:
            raise RuntimeError("the codec failed")
        return codes.numpy().astype(np.float32)

    monkeypatch.setattr(CodesDecoder, "feed", feed)
    with pytest.raises(GenerationFailed):
        rig.engine.submit(params()).result(SECONDS)
    assert codes_of(rig.engine.submit(params())).shape == (4, 100)


@pytest.mark.parametrize(("num_requests", "num_frames"), [(1, FEW_FRAMES), (NUM_ROWS, SHARED_STEPS)])
def test_the_codec_gets_frames_of_few_requests_as_they_come_and_of_many_once_in_a_block(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, num_requests: int, num_frames: int
) -> None:
    feeds = []

    def feed(_: CodesDecoder, codes: Tensor, final: bool = False) -> Any:
        feeds.append(0 if final else codes.shape[1])
        return codes.numpy().astype(np.float32)

    rig = make_rig()
    first = rig.hold()  # so that the others join in one step
    monkeypatch.setattr(CodesDecoder, "feed", feed)
    requests = [first, *(rig.engine.submit(params(seed=seed)) for seed in range(1, num_requests))]
    rig.runner.gate.set()
    for request in requests:
        request.result(SECONDS)
    # A few frames are left for the next time.
    assert num_frames <= max(feeds) < num_frames + FEW_FRAMES


def test_a_result_that_cannot_be_joined_ends_its_request_alone(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    with monkeypatch.context() as patch:
        patch.setattr(EngineRequest, "finish", lambda _: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(OutOfMemory):
            rig.engine.submit(params(duration_seconds=1.0)).result(SECONDS)
    assert codes_of(rig.engine.submit(params())).shape == (4, 100)


def test_a_model_that_does_not_load_ends_its_requests_and_is_tried_again(cache: OneModelEach) -> None:
    fail = threading.Event()
    fail.set()

    class Unsteady(OneModelEach):
        def lease(self, name: str) -> Any:
            if fail.is_set():
                raise ModelUnavailable("The model does not load.")
            return cache.lease(name)

    engine = BatchingEngine(Unsteady(lambda _: None), Config(precision="exact"))
    with pytest.raises(ModelUnavailable):
        engine.submit(params()).result(SECONDS)
    fail.clear()
    assert codes_of(engine.submit(params())).shape == (4, 100)
    engine.close()


# --- bounds, idling, closing


def test_the_line_is_bounded_whoever_submits_at_once(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_batch_requests=2, max_waiting=3)
    taken, refused = [rig.hold()], []
    start = threading.Barrier(16)

    def submit(seed: int) -> None:
        start.wait()
        try:
            taken.append(rig.engine.submit(params(seed=seed, duration_seconds=1.0)))
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
    rig.runner.gate.set()
    for request in taken:
        codes_of(request)


def test_an_idle_engine_holds_no_thread_and_no_lease(make_rig: Callable[..., Rig], cache: OneModelEach) -> None:
    rig = make_rig()
    codes_of(rig.engine.submit(params(duration_seconds=1.0)))
    for thread in threading.enumerate():
        if thread.name.startswith("engine-"):
            thread.join(SECONDS)

    assert cache.num_leases == 0
    status = rig.engine.status()
    assert (status.num_running, status.num_waiting) == (0, 0)
    codes_of(rig.engine.submit(params(duration_seconds=1.0)))
    assert len(rig.runners) == 1  # the prepared weights were kept


def test_an_unloaded_model_leaves_nothing_behind(make_rig: Callable[..., Rig], cache: OneModelEach) -> None:
    rig = make_rig()
    codes_of(rig.engine.submit(params(duration_seconds=1.0)))
    for thread in threading.enumerate():
        if thread.name.startswith("engine-"):
            thread.join(SECONDS)
    runner = weakref.ref(rig.runners.pop())

    cache.unload("demo")
    gc.collect()

    assert runner() is None
    codes_of(rig.engine.submit(params(duration_seconds=1.0)))


def test_a_model_unloaded_as_its_last_request_ends_leaves_nothing_behind(demo_checkpoints: Path) -> None:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu", precision="exact", model_memory_bytes=1)
    cache = ModelCache(Catalog(config), config)
    engine = BatchingEngine(cache, config)
    codes_of(engine.submit(params(duration_seconds=1.0)))
    loop = engine._loops["demo"]
    assert loop.join(SECONDS)
    assert cache.loaded_names() == []
    assert loop._prepared is None
    engine.close()
    cache.close()


def test_closing_tells_who_waits_while_the_model_loads(cache: OneModelEach) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(inner: Any) -> Any:
        entered.set()
        assert leave.wait(SECONDS)
        return inner

    engine = BatchingEngine(cache, Config(precision="exact"), stepper_over(slow))
    request = engine.submit(params())
    assert entered.wait(SECONDS)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(ShuttingDown):
        request.result(SECONDS)
    assert closing.is_alive()
    leave.set()
    closing.join(SECONDS)


def test_closing_ends_what_runs_and_what_waits(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_batch_requests=1)
    requests = [rig.hold(), rig.engine.submit(params())]
    closing = threading.Thread(target=rig.engine.close)
    closing.start()
    rig.runner.gate.set()

    for request in requests:
        with pytest.raises(ShuttingDown):
            request.result(SECONDS)
    closing.join(SECONDS)
    with pytest.raises(ShuttingDown):
        rig.engine.submit(params())


def test_closing_with_grace_lets_requests_finish(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    request = rig.hold()
    rig.runner.gate.set()
    rig.engine.close(SECONDS)
    assert request.state == "finished"


def test_submitting_does_not_wait_for_a_model_that_is_being_prepared(cache: OneModelEach) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(inner: Any) -> Any:
        entered.set()
        assert leave.wait(SECONDS)
        return inner

    engine = BatchingEngine(cache, Config(precision="exact"), stepper_over(slow))
    first = engine.submit(params())
    assert entered.wait(SECONDS)
    second = engine.submit(params(seed=1))
    assert engine.status().num_waiting == 2
    leave.set()
    assert codes_of(first).shape == codes_of(second).shape
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_shows_in_the_status(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    assert rig.engine.status().is_alive
    request = rig.hold()
    assert rig.engine.status().is_alive
    rig.runner.fail[0] = rig.runner.fail[1] = sys.exit  # ends a thread without a word

    rig.runner.gate.set()

    assert rig.engine._loops["demo"].join(SECONDS)
    assert not rig.engine.status().is_alive
    assert not request.wait(0)


@pytest.fixture
def real_cache(demo_checkpoints: Path) -> Iterator[ModelCache]:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu")
    cache = ModelCache(Catalog(config), config)
    yield cache
    cache.close()


def test_packed_weights_take_the_place_of_the_models_own(real_cache: ModelCache, cache: OneModelEach) -> None:
    engine = BatchingEngine(real_cache, Config(precision="exact"))
    with real_cache.lease("demo") as model:
        stored_bytes = model.weight_bytes
        weight = weakref.ref(model.lm.transformer.layers[0].linear1.weight)
        for case in (params(), params(description="slow strings", seed=8)):
            assert np.array_equal(codes_of(engine.submit(case)), alone(cache, case))

        assert model.has_released_decoder_weights
        assert weight() is None
        for part in (model.lm.emb, model.lm.transformer, model.lm.out_norm, model.lm.linears):
            assert all(parameter.is_meta for parameter in part.parameters())
        assert not any(parameter.is_meta for parameter in model.lm.condition_provider.parameters())
        assert 0.9 < model.weight_bytes / stored_bytes < 1.5  # half precision as stored, embeddings in float32
    engine.close()
    assert real_cache.loaded_names() == []


def test_packed_weights_take_that_place_even_when_the_first_request_never_comes_to_a_step(
    real_cache: ModelCache,
) -> None:
    engine = BatchingEngine(real_cache, Config(precision="exact"))
    with real_cache.lease("demo") as model:
        with pytest.raises(InvalidRequest):
            engine.submit(params(audio_prompt=noise(3.0))).result(SECONDS)
        assert engine._loops["demo"].join(SECONDS)
        assert model.has_released_decoder_weights
    engine.close()


def test_a_model_without_its_weights_is_loaded_anew(
    real_cache: ModelCache, cache: OneModelEach, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BatchingEngine(real_cache, Config(precision="exact"))
    case = params()
    release_decoder_weights = real_cache.release_decoder_weights

    def release_and_fail(model: Any, num_bytes: int) -> None:
        release_decoder_weights(model, num_bytes)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(real_cache, "release_decoder_weights", release_and_fail)
        with pytest.raises(GenerationFailed):
            engine.submit(case).result(SECONDS)
        assert engine._loops["demo"].join(SECONDS)
    assert real_cache.loaded_names() == []

    assert np.array_equal(codes_of(engine.submit(case)), alone(cache, case))

    assert real_cache.loaded_names() == ["demo"]
    engine.close()
