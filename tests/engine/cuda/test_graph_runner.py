"""The step that stays on the device: eagerly on the CPU, and captured where there is a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.config import Config
from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.cuda.graph_runner import CudaGraphRunner
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.noise import exponential_noise
from audiocraft_api.engine.sampling import keep_top_k, keep_top_p
from audiocraft_api.engine.weights import converted, decoder_weights
from support.engines import (
    CodesDecoder,
    OneModelEach,
    codes_of,
    demo_model,
    noise,
    params,
    reference_codes,
    short_window_model,
)

GREEDY = {"use_sampling": False}


def make_model_runner(device: str, steppers: list[CudaGraphRunner]) -> Callable[[Any, Config], CudaGraphRunner]:
    """Return what makes a float32 model_runner on a device, whatever device the model is on."""

    def make(model: Any, config: Config) -> CudaGraphRunner:
        weights = converted(decoder_weights(model.lm), torch.float32, torch.device(device))
        pattern = DelayPattern(model.lm.pattern_provider.delays, model.special_token_id)
        model_runner = CudaGraphRunner(
            weights,
            pattern,
            num_places=config.engine.max_batch_requests,
            max_prefix=512 if model.has_melody else 0,
            num_columns=pattern.num_columns(model.max_window_frames),
            capture=device == "cuda",
        )
        steppers.append(model_runner)
        return model_runner

    return make


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def steppers() -> list[CudaGraphRunner]:
    return []


@pytest.fixture
def cache(demo_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> OneModelEach:
    monkeypatch.setattr("audiocraft_api.engine.executor.make_decoder", lambda _: CodesDecoder())
    return OneModelEach(lambda name: demo_model(demo_checkpoints, name))


@pytest.fixture
def engine(cache: OneModelEach, device: str, steppers: list[CudaGraphRunner]) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(cache, Config(max_batch_requests=5), make_model_runner(device, steppers))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "case",
    [
        params(**GREEDY, duration_seconds=6.0),
        params(**GREEDY, description="", cfg_coef=1.0),
        params(**GREEDY, audio_prompt=noise(1.5)),
        params(**GREEDY, audio_prompt=noise(5.0), duration_seconds=6.0),
        params("demo-melody", **GREEDY, melody=noise(2.0)),
        params("demo-melody", **GREEDY, melody=noise(2.0), audio_prompt=noise(1.0)),
        params("demo-stereo", **GREEDY),
    ],
    ids=lambda case: f"{case.model}-{case.duration_seconds}-{bool(case.melody)}-{bool(case.audio_prompt)}",
)
def test_greedy_codes_are_audiocrafts(engine: BatchingEngine, cache: OneModelEach, case: GenerationParams) -> None:
    codes = codes_of(engine.submit(case))
    with cache.lease(case.model) as model:
        np.testing.assert_array_equal(codes, reference_codes(model, case))


def test_windows_go_on_where_the_last_ended(
    demo_checkpoints: Path, cache: OneModelEach, device: str, steppers: list[CudaGraphRunner]
) -> None:
    cache = OneModelEach(lambda name: short_window_model(demo_checkpoints, name))
    engine = BatchingEngine(cache, Config(max_batch_requests=1), make_model_runner(device, steppers))
    case = params(**GREEDY, duration_seconds=20.0, extend_stride_seconds=18.0)
    with cache.lease("demo") as model:
        np.testing.assert_array_equal(codes_of(engine.submit(case)), reference_codes(model, case))
    engine.close()


def test_a_request_gives_the_same_codes_alone_and_in_company(engine: BatchingEngine) -> None:
    cases = [
        params(seed=1),
        params(seed=1, description="", duration_seconds=1.0),
        params(seed=2, top_p=0.9, audio_prompt=noise(0.7)),
        params(seed=3, top_k=0, temperature=0.7, duration_seconds=3.0),
        params(**GREEDY, cfg_coef=6.0),
        params(seed=4, description="a very long and slow and dark ambient song with a choir and strings"),
    ]
    alone = [codes_of(engine.submit(case)) for case in cases]
    together = [engine.submit(case) for case in cases]
    for codes, request in zip(alone, together, strict=True):
        np.testing.assert_array_equal(codes, codes_of(request))
    assert not np.array_equal(alone[0][:, :50], alone[1][:, :50])


def test_numbers_that_overflow_end_their_request_and_poison_no_other(
    engine: BatchingEngine, steppers: list[CudaGraphRunner]
) -> None:
    case = params(audio_prompt=noise(0.5))
    expected = codes_of(engine.submit(case))
    model_runner = steppers[0]
    prefill = model_runner.prefill

    def poisoned(run: Any) -> None:
        prefill(run)
        model_runner._values[0, 0, 0, :, 0] = float("nan")

    model_runner.prefill = poisoned  # type: ignore[method-assign]
    with pytest.raises(GenerationFailed, match="overflowed"):
        codes_of(engine.submit(case))
    model_runner.prefill = prefill  # type: ignore[method-assign]
    for left_over in (model_runner._keys, model_runner._values, *model_runner._context):
        left_over.fill_(float("nan"))

    np.testing.assert_array_equal(codes_of(engine.submit(case)), expected)
    np.testing.assert_array_equal(codes_of(engine.submit(params(seed=9))), codes_of(engine.submit(params(seed=9))))


def test_sampling_follows_the_same_distribution_as_the_twin(device: str) -> None:
    from audiocraft_api.engine.cuda.device_state import DeviceState

    num_places, codebook_size = 2000, 16
    logits = torch.randn(codebook_size, generator=torch.Generator().manual_seed(0)).mul(2).to(device)
    probs = torch.softmax(logits.cpu(), dim=0)
    ranked, order = probs.sort(descending=True)
    nucleus = torch.zeros(codebook_size).scatter(0, order, keep_top_p(ranked, 0.7))
    rules = {(0, 0.0): probs, (4, 0.0): keep_top_k(probs, 4), (4, 0.7): nucleus}
    for (top_k, top_p), expected in rules.items():
        state = DeviceState(num_places, 2, 4, torch.device(device))
        state.seed.copy_(torch.arange(num_places))
        state.top_k.fill_(top_k)
        state.top_p.fill_(top_p)
        tokens = state._sample(logits.expand(num_places, 2, codebook_size))
        found = torch.bincount(tokens.flatten().cpu(), minlength=codebook_size) / tokens.numel()
        assert (found - expected).abs().max() < 4 * (0.25 / tokens.numel()) ** 0.5
        assert found[expected == 0].sum() == 0


def test_noise_is_exponential_and_its_own_for_every_seed_draw_and_place(device: str) -> None:
    seeds = torch.tensor([0, 1, 1, 2**53 - 1, 0], device=device)
    draws = torch.tensor([0, 0, 1, 7, 0], device=device)
    values = exponential_noise(seeds, draws, 4, 2048).cpu()

    assert torch.equal(values[0], values[4])
    assert values[:4].unique().numel() > 0.99 * values[:4].numel()
    assert values.min() > 0
    assert abs(values[:4].mean() - 1) < 0.02
    assert abs(values[:4].var() - 1) < 0.05
    assert torch.corrcoef(values[:4].flatten(1)).fill_diagonal_(0).abs().max() < 0.05
