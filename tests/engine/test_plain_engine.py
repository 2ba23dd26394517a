"""The plain engine on real audiocraft with the demo checkpoints."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.config import Config, load_config
from audiocraft_api.core.errors import (
    Canceled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    OutOfMemory,
    QueueFull,
    ShuttingDown,
)
from audiocraft_api.core.params import AudioInput, GenerationParams
from audiocraft_api.core.request import GenerationResult
from audiocraft_api.core.window import Window
from audiocraft_api.engine.plain import PlainEngine
from audiocraft_api.model.audiocraft_adapter import LoadedModel
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache

WAIT_SECONDS = 60.0
PARAMS = GenerationParams("demo", "slow piano", 1.0, seed=11)


@pytest.fixture(scope="module")
def config(demo_checkpoints: Path) -> Config:
    return load_config({}, checkpoints_dir=demo_checkpoints, offline=True, device="cpu", max_waiting=2)


@pytest.fixture(scope="module")
def cache(config: Config) -> Iterator[ModelCache]:
    cache = ModelCache(Catalog(config), config)
    yield cache
    cache.close()


@pytest.fixture(scope="module")
def short_windows(demo_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelCache]:
    """The demo models with windows of 19 s instead of 30 s (audiocraft's MusicGen requires more than 18)."""
    directory = tmp_path_factory.mktemp("short")
    declared = {}
    for name in ("demo", "demo-melody"):
        declared[name] = {"checkpoint": str(directory / name), "melody": name == "demo-melody", "window_seconds": 19}
        shutil.copytree(demo_checkpoints / name, directory / name)
        package = torch.load(directory / name / "state_dict.bin", weights_only=True)
        package["xp.cfg"] = package["xp.cfg"].replace("segment_duration: 30", "segment_duration: 19")
        torch.save(package, directory / name / "state_dict.bin")
    (directory / "models.json").write_text(json.dumps(declared))
    config = load_config(
        {}, checkpoints_dir=directory, models_file=directory / "models.json", offline=True, device="cpu"
    )
    cache = ModelCache(Catalog(config), config)
    yield cache
    cache.close()


@pytest.fixture
def engine(cache: ModelCache, config: Config) -> Iterator[PlainEngine]:
    engine = PlainEngine(cache, config.engine)
    yield engine
    engine.close()


def run(engine: PlainEngine, params: GenerationParams) -> GenerationResult:
    return engine.submit(params).result(WAIT_SECONDS)


def tone(frequency: float, seconds: float = 2.0, sample_rate: int = 44_100, channels: int = 1) -> AudioInput:
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sample_rate)) / sample_rate)
    return AudioInput(np.tile(wave.astype(np.float32), (channels, 1)), sample_rate)


def ignore_progress(_done: int, _total: int) -> None:
    pass


class Gate:
    """Stops a generation in its first step until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        original = LoadedModel.generate_codes

        def gated(model: LoadedModel, params: GenerationParams, on_step: Callable[[int, int], None]) -> Any:
            def step(done: int, total: int) -> None:
                self.entered.set()
                assert self.opened.wait(WAIT_SECONDS)
                on_step(done, total)

            return original(model, params, step)

        monkeypatch.setattr(LoadedModel, "generate_codes", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def test_a_seed_makes_the_result_reproducible(engine: PlainEngine) -> None:
    first, again, other = (run(engine, replace(PARAMS, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.waveform, again.waveform)
    assert not np.array_equal(first.waveform, other.waveform)
    assert (first.sample_rate, first.num_frames, first.model) == (32_000, 50, "demo")
    assert len(first.revision) == 40


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_p": 0.8}, {"top_k": 5, "temperature": 0.7}, {"use_sampling": False}, {"cfg_coef": 1.0}],
    ids=["defaults", "top_p", "top_k", "greedy", "cfg"],
)
def test_codes_are_those_of_audiocraft_called_directly(cache: ModelCache, changes: dict[str, Any]) -> None:
    from audiocraft.models import MusicGen

    params = replace(PARAMS, **changes)
    with cache.lease("demo") as model:
        reference = MusicGen("reference", model.codec, model.lm)
        reference.set_generation_params(
            use_sampling=params.use_sampling, top_k=params.top_k, top_p=params.top_p, temperature=params.temperature,
            cfg_coef=params.cfg_coef, duration=1.0,
        )  # fmt: skip
        torch.manual_seed(params.seed)
        _, codes = reference.generate([params.description], return_tokens=True)
        assert torch.equal(model.generate_codes(params, ignore_progress), codes)


def test_codes_with_a_melody_are_those_of_audiocraft_called_directly(cache: ModelCache) -> None:
    from audiocraft.models import MusicGen

    melody = tone(523.25, channels=2)
    with cache.lease("demo-melody") as model:
        model.to_float32()
        reference = MusicGen("reference", model.codec, model.lm)
        reference.set_generation_params(duration=1.0)
        torch.manual_seed(3)
        _, codes = reference.generate_with_chroma(
            ["x"], torch.tensor(melody.waveform)[None], melody.sample_rate, return_tokens=True
        )
        params = GenerationParams("demo-melody", "x", 1.0, 3, melody=melody)
        assert torch.equal(model.generate_codes(params, ignore_progress), codes)


def test_the_callers_random_state_is_unchanged(cache: ModelCache) -> None:
    with cache.lease("demo") as model:
        torch.manual_seed(99)
        expected = torch.rand(3)
        torch.manual_seed(99)
        model.generate_codes(replace(PARAMS, duration_seconds=0.1), ignore_progress)
        assert torch.equal(torch.rand(3), expected)


def test_concurrent_requests_keep_their_own_parameters(engine: PlainEngine) -> None:
    long, short = replace(PARAMS, duration_seconds=1.5, temperature=0.5), replace(PARAMS, seed=3, top_k=3)
    alone = [run(engine, params).waveform for params in (long, short)]
    together = [engine.submit(params) for params in (long, short)]
    for request, expected in zip(together, alone, strict=True):
        assert np.array_equal(request.result(WAIT_SECONDS).waveform, expected)


@pytest.mark.parametrize("duration", [0.02, 0.3, 1.0, 1.1, 2.3, 4.1])
def test_the_duration_is_right_to_a_frame(engine: PlainEngine, duration: float) -> None:
    result = run(engine, replace(PARAMS, duration_seconds=duration))
    assert result.num_frames == round(duration * 50)
    assert result.waveform.shape == (1, result.num_frames * 640)
    assert np.abs(result.waveform).max() < 1


def test_duration_and_progress_are_right_beyond_one_window(short_windows: ModelCache) -> None:
    params = replace(PARAMS, duration_seconds=20.14, extend_stride_seconds=18.5)  # 20.14 - 18.5 is 81.99… frames
    steps: list[tuple[int, int]] = []
    with short_windows.lease("demo") as model:
        windows = model.windows(params)
        codes = model.generate_codes(params, lambda done, total: steps.append((done, total)))
    assert windows == [Window(0, 0, 950), Window(925, 25, 82)]
    assert codes.shape == (1, 4, 1007)
    assert steps[-1] == (1007, 1007)
    assert {total for _, total in steps} == {1007}
    assert all(before <= after for (before, _), (after, _) in pairwise(steps))


def test_windows_of_a_released_length_are_those_of_audiocraft(cache: ModelCache) -> None:
    with cache.lease("demo") as model:
        assert model.windows(replace(PARAMS, duration_seconds=30.0)) == [Window(0, 0, 1500)]
        assert model.windows(replace(PARAMS, duration_seconds=50.02)) == [
            Window(0, 0, 1500),
            Window(900, 600, 1500),
            Window(1800, 600, 701),
        ]


def test_condition_tensors_are_those_that_the_loop_uses(
    short_windows: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    params = replace(PARAMS, model="demo-melody", melody=tone(440), duration_seconds=19.1, extend_stride_seconds=18.9)
    with short_windows.lease("demo-melody") as model:
        original = model.lm._sample_next_token

        def spy(sequence: Any, conditions: Any, *args: Any, **kwargs: Any) -> Any:
            if not seen or seen[-1] is not conditions:
                seen.append(conditions)
            return original(sequence, conditions, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(model.lm, "_sample_next_token", spy)
            model.generate_codes(params, ignore_progress)
            model.generate_codes(replace(params, duration_seconds=0.1), ignore_progress)
        assert len(seen) == 3
        for conditions, start in zip(seen, (0.0, 18.9, None), strict=True):
            cond, null = model.condition_tensors(params.description, params.melody, start)
            for name, (tensor, mask) in conditions.items():
                assert torch.equal(torch.cat([cond[name][0], null[name][0]]), tensor)
                assert torch.equal(torch.cat([cond[name][1], null[name][1]]), mask)


def test_progress_counts_frames(engine: PlainEngine) -> None:
    request = engine.submit(PARAMS)
    result = request.result(WAIT_SECONDS)
    assert request.progress == (50, 50)
    assert np.array_equal(np.concatenate(list(request.chunks()), axis=1), result.waveform)


def test_a_canceled_generation_stops_and_the_next_one_runs(engine: PlainEngine, gate: Gate) -> None:
    request = engine.submit(replace(PARAMS, duration_seconds=30))
    assert gate.entered.wait(WAIT_SECONDS)
    assert engine.status().num_running == 1
    request.cancel()
    gate.opened.set()
    with pytest.raises(Canceled):
        request.result(WAIT_SECONDS)
    assert request.progress[0] < 50
    assert run(engine, PARAMS).num_frames == 50


def test_a_missed_deadline_ends_a_running_and_a_waiting_request(engine: PlainEngine, gate: Gate) -> None:
    running = engine.submit(replace(PARAMS, duration_seconds=30), deadline=time.monotonic() + 0.05)
    waiting = engine.submit(PARAMS, deadline=time.monotonic() + 0.05)
    assert gate.entered.wait(WAIT_SECONDS)
    while time.monotonic() < (running.deadline or 0):
        gate.opened.wait(0.01)
    gate.opened.set()
    for request in (running, waiting):
        with pytest.raises(DeadlineExceeded):
            request.result(WAIT_SECONDS)


def test_a_full_queue_rejects_requests_and_canceled_requests_make_room(engine: PlainEngine, gate: Gate) -> None:
    running = engine.submit(PARAMS)
    assert gate.entered.wait(WAIT_SECONDS)
    waiting = [engine.submit(PARAMS) for _ in range(2)]
    with pytest.raises(QueueFull) as caught:
        engine.submit(PARAMS)  # the gate is closed, so waiting for space in the queue would block
    assert caught.value.retry_after_seconds >= 1
    assert engine.status().num_waiting == 2
    places = [engine.queue_place(request) for request in (running, *waiting)]
    assert [place and place.position for place in places] == [None, 1, 2]
    waiting[0].cancel()
    late = engine.submit(PARAMS)
    with pytest.raises(Canceled):
        waiting[0].result(WAIT_SECONDS)
    gate.opened.set()
    for request in (running, waiting[1], late):
        assert request.result(WAIT_SECONDS).num_frames == 50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("a secret cause"), GenerationFailed),
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
    ],
)
def test_an_error_ends_one_request_with_a_neutral_message_and_is_logged_once(
    engine: PlainEngine,
    error: Exception,
    expected: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_args: Any) -> None:
        raise error

    caplog.set_level(logging.ERROR)
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "decode_codes", fail)
        with pytest.raises(expected) as caught:
            run(engine, replace(PARAMS, duration_seconds=0.1))
    assert "secret" not in str(caught.value)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert run(engine, replace(PARAMS, duration_seconds=0.1)).num_frames == 5


def test_a_waveform_that_is_not_finite_fails_the_request(engine: PlainEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "decode_codes", lambda *_args: torch.full((1, 640), float("nan")))
    with pytest.raises(GenerationFailed, match="no usable audio"):
        run(engine, replace(PARAMS, duration_seconds=0.1))


def test_a_model_that_does_not_exist_ends_the_request(engine: PlainEngine) -> None:
    with pytest.raises(InvalidRequest):
        run(engine, replace(PARAMS, model="none"))


def test_close_ends_waiting_and_running_requests(cache: ModelCache, config: Config, gate: Gate) -> None:
    engine = PlainEngine(cache, config.engine)
    requests = [engine.submit(PARAMS) for _ in range(2)]
    assert gate.entered.wait(WAIT_SECONDS)
    closer = threading.Thread(target=engine.close)
    closer.start()
    for request in requests:
        with pytest.raises(ShuttingDown):
            request.result(WAIT_SECONDS)
    gate.opened.set()
    closer.join(WAIT_SECONDS)
    assert not closer.is_alive()
    assert requests[0].state == "aborted"
    with pytest.raises(ShuttingDown):
        engine.submit(PARAMS)


def test_close_with_grace_lets_accepted_requests_finish(cache: ModelCache, config: Config) -> None:
    engine = PlainEngine(cache, config.engine)
    requests = [engine.submit(PARAMS) for _ in range(2)]
    engine.close(grace_seconds=WAIT_SECONDS)
    assert [request.result(0).num_frames for request in requests] == [50, 50]
    assert "plain-engine" not in {thread.name for thread in threading.enumerate()}
