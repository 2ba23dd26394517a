"""Steps that stay on the device: eager on the CPU, captured if there is a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.core.params import GenerationParams, Segment
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.cuda.graph_runner import CudaGraphRunner
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.sampling import exponential_noise, keep_top_k, keep_top_p
from audiocraft_api.engine.weights import converted, decoder_weights
from support.engines import (
    LoadedModels,
    codes_engine,
    noise,
    params,
    reference_codes,
    short_window_model,
    wait_for_codes,
)

GREEDY = {"use_sampling": False}


def runner_factory(device: str, runners: list[CudaGraphRunner]) -> Callable[[Any, EngineSettings], CudaGraphRunner]:
    """Return a factory of float32 runners on `device`, whatever device the model is on."""

    def make(model: Any, config: EngineSettings) -> CudaGraphRunner:
        weights = converted(decoder_weights(model.lm), torch.float32, torch.device(device))
        pattern = DelayPattern(model.lm.pattern_provider.delays, model.special_token_id)
        model_runner = CudaGraphRunner(
            weights,
            pattern,
            max_batch_size=config.max_batch_requests,
            max_prefix=512 if model.has_melody else 0,
            num_columns=pattern.num_columns(model.max_window_frames),
            capture=device == "cuda",
        )
        runners.append(model_runner)
        return model_runner

    return make


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runners() -> list[CudaGraphRunner]:
    return []


@pytest.fixture
def engine(cache: LoadedModels, device: str, runners: list[CudaGraphRunner]) -> Iterator[BatchingEngine]:
    engine = codes_engine(cache, max_batch_requests=5, model_runner_factory=runner_factory(device, runners))
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
        params(**GREEDY, negative_description="drums"),
        params(**GREEDY, segments=(Segment("jazz", 0.7, "drums"), Segment("rock guitar", 0.9), Segment("folk", 0.4))),
        params("demo-melody", **GREEDY, melody=noise(2.0), negative_description="drums and a choir"),
    ],
    ids=lambda case: (
        f"{case.model}-{case.duration_seconds}-{bool(case.melody)}-{bool(case.audio_prompt)}-{case.negative_description}-{len(case.segments)}"
    ),
)
def test_greedy_codes_are_audiocrafts(engine: BatchingEngine, cache: LoadedModels, case: GenerationParams) -> None:
    codes = wait_for_codes(engine.submit(case))
    with cache.lease(case.model) as model:
        np.testing.assert_array_equal(codes, reference_codes(model, case))


@pytest.mark.fault
def test_a_window_continues_where_the_last_one_ended(
    demo_checkpoints: Path, device: str, runners: list[CudaGraphRunner]
) -> None:
    cache = LoadedModels(lambda name: short_window_model(demo_checkpoints, name))
    engine = codes_engine(cache, max_batch_requests=1, model_runner_factory=runner_factory(device, runners))
    case = params(**GREEDY, duration_seconds=20.0, extend_stride_seconds=18.0)
    with cache.lease("demo") as model:
        np.testing.assert_array_equal(wait_for_codes(engine.submit(case)), reference_codes(model, case))
    engine.close()


def test_a_request_gives_the_same_codes_alone_and_in_a_batch(engine: BatchingEngine) -> None:
    cases = [
        params(seed=1),
        params(seed=1, description="", duration_seconds=1.0),
        params(seed=2, top_p=0.9, audio_prompt=noise(0.7)),
        params(seed=3, top_k=0, temperature=0.7, duration_seconds=3.0),
        params(**GREEDY, cfg_coef=6.0, negative_description="drums"),
        params(seed=2, segments=(Segment("jazz", 0.9), Segment("a slow song with a choir", 1.1, "drums"))),
        params(seed=4, description="a very long and slow and dark ambient song with a choir and strings"),
    ]
    alone = [wait_for_codes(engine.submit(case)) for case in cases]
    together = [engine.submit(case) for case in cases]
    for codes, request in zip(alone, together, strict=True):
        np.testing.assert_array_equal(codes, wait_for_codes(request))
    assert not np.array_equal(alone[0][:, :50], alone[1][:, :50])


def test_an_overflow_ends_its_request_and_affects_no_other(
    engine: BatchingEngine, runners: list[CudaGraphRunner]
) -> None:
    case = params(audio_prompt=noise(0.5))
    expected = wait_for_codes(engine.submit(case))
    model_runner = runners[0]
    prefill = model_runner.prefill

    def overflowing(seq: Any) -> None:
        prefill(seq)
        model_runner._values[0, 0, 0, :, 0] = float("nan")

    model_runner.prefill = overflowing  # type: ignore[method-assign]
    with pytest.raises(GenerationFailed, match="invalid numbers"):
        wait_for_codes(engine.submit(case))
    model_runner.prefill = prefill  # type: ignore[method-assign]
    for left_over in (model_runner._keys, model_runner._values, *model_runner._contexts[0]):
        left_over.fill_(float("nan"))

    np.testing.assert_array_equal(wait_for_codes(engine.submit(case)), expected)
    np.testing.assert_array_equal(
        wait_for_codes(engine.submit(params(seed=9))), wait_for_codes(engine.submit(params(seed=9)))
    )


def test_sampling_follows_the_same_distribution_as_the_reference(device: str) -> None:
    from audiocraft_api.engine.cuda.device_state import DeviceState

    batch_size, codebook_size = 2000, 16
    logits = torch.randn(codebook_size, generator=torch.Generator().manual_seed(0)).mul(2).to(device)
    probs = torch.softmax(logits.cpu(), dim=0)
    ranked, order = probs.sort(descending=True)
    nucleus = torch.zeros(codebook_size).scatter(0, order, keep_top_p(ranked, 0.7))
    rules = {(0, 0.0): probs, (4, 0.0): keep_top_k(probs, 4), (4, 0.7): nucleus}
    for (top_k, top_p), expected in rules.items():
        state = DeviceState(batch_size, 2, 4, torch.device(device))
        state.seed.copy_(torch.arange(batch_size))
        state.top_k.fill_(top_k)
        state.top_p.fill_(top_p)
        tokens = state._sample(logits.expand(batch_size, 2, codebook_size))
        found = torch.bincount(tokens.flatten().cpu(), minlength=codebook_size) / tokens.numel()
        assert (found - expected).abs().max() < 4 * (0.25 / tokens.numel()) ** 0.5
        assert found[expected == 0].sum() == 0


def test_noise_is_exponential_and_independent_for_each_seed_draw_and_candidate(device: str) -> None:
    seeds = torch.tensor([0, 1, 1, 2**53 - 1, 0], device=device)
    draws = torch.tensor([0, 0, 1, 7, 0], device=device)
    values = exponential_noise(seeds, draws, 4, 2048).cpu()

    assert torch.equal(values[0], values[4])
    assert values[:4].unique().numel() > 0.99 * values[:4].numel()
    assert values.min() > 0
    assert abs(values[:4].mean() - 1) < 0.02
    assert abs(values[:4].var() - 1) < 0.05
    assert torch.corrcoef(values[:4].flatten(1)).fill_diagonal_(0).abs().max() < 0.05
