"""`exact` gives audiocraft's own codes for the same seed. All requests of a test are decoded in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.config import Config
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.precision import default_backend
from audiocraft_api.engine.sampling import TorchSampler, apply_cfg, generator_noise
from audiocraft_api.engine.sequence import Conditioning, Sequence
from audiocraft_api.engine.torch_backend import TorchBackend, packed_linear, plain_linear
from audiocraft_api.engine.weights import decoder_weights
from support.engines import (
    SECONDS,
    LoadedModels,
    assert_same_codes,
    codes_engine,
    noise,
    params,
    reference_codes,
    short_window_model,
    wait_for_codes,
)
from support.tiny_lm import build_lm, conditions, generate


def test_thirty_seconds_are_audiocrafts(exact_engine: BatchingEngine, cache: LoadedModels) -> None:
    assert_same_codes(exact_engine, cache, [params(duration_seconds=30.0)])


def test_every_kind_of_sampling_is_audiocrafts(exact_engine: BatchingEngine, cache: LoadedModels) -> None:
    cases = [
        params(duration_seconds=3.0, use_sampling=False),
        params(duration_seconds=3.0, cfg_coef=6.0, seed=6),
        params(duration_seconds=3.0, top_p=0.9, temperature=0.8, cfg_coef=6.0, seed=7, description="slow epic choir"),
        params(duration_seconds=5.0, temperature=1.3, top_k=0, seed=8, audio_prompt=noise(3.0)),
    ]
    assert_same_codes(exact_engine, cache, cases)


def test_short_requests_are_audiocrafts_at_the_limits_of_the_parameters(
    exact_engine: BatchingEngine, cache: LoadedModels
) -> None:
    cases = [
        params(cfg_coef=1.0),
        params(description=""),
        params(description="", cfg_coef=1.0, temperature=0.5),
        params(description=" "),
        params(duration_seconds=1.0, top_k=1),
        params(audio_prompt=noise(1.9)),
        params(audio_prompt=noise(0.02), cfg_coef=0.0),
        params(description="a " * 100, duration_seconds=4.1),
    ]
    assert_same_codes(exact_engine, cache, cases)


@pytest.mark.fault
def test_generations_of_several_windows_are_audiocrafts(demo_checkpoints: Path) -> None:
    cache = LoadedModels(lambda name: short_window_model(demo_checkpoints, name))
    engine = codes_engine(cache)
    cases = [
        params(duration_seconds=20.1, extend_stride_seconds=17.5),
        params(duration_seconds=20.0, extend_stride_seconds=18.0, audio_prompt=noise(15.0), description=""),
        params(
            "demo-melody",
            duration_seconds=21.0,
            extend_stride_seconds=18.0,
            melody=noise(2.0, seed=1),
            audio_prompt=noise(14.0),
        ),
    ]
    assert_same_codes(engine, cache, cases)
    engine.close()


def test_melody_models_are_audiocrafts_with_and_without_a_melody(
    exact_engine: BatchingEngine, cache: LoadedModels
) -> None:
    cases = [
        params("demo-melody", melody=noise(3.0)),
        params("demo-melody", melody=noise(1.0), description=""),
        params("demo-melody"),
        params("demo-melody", melody=noise(3.0), audio_prompt=noise(1.0, seed=2)),
    ]
    assert_same_codes(exact_engine, cache, cases)


def test_stereo_is_audiocrafts(exact_engine: BatchingEngine, cache: LoadedModels) -> None:
    cases = [
        params("demo-stereo", duration_seconds=5.0),
        params("demo-stereo", audio_prompt=noise(1.0), use_sampling=False),
    ]
    assert_same_codes(exact_engine, cache, cases)


@pytest.mark.parametrize("name", ["demo", "demo-stereo"])
def test_a_continuation_over_two_windows_is_audiocrafts(
    exact_engine: BatchingEngine, cache: LoadedModels, name: str
) -> None:
    given = noise(28.5)
    codes = wait_for_codes(exact_engine.submit(params(name, duration_seconds=31.0, audio_prompt=given)))
    with cache.lease(name) as model, torch.random.fork_rng():
        model.to_float32()
        wrapper = model._wrapper()  # audiocraft's MusicGen
        wrapper.set_generation_params(duration=31.0, extend_stride=18.0)
        torch.manual_seed(5)
        prompt = torch.from_numpy(given.waveform)
        _, expected = wrapper.generate_continuation(prompt, given.sample_rate, ["warm jazz piano"], return_tokens=True)
    assert codes.shape[1] == 1550
    np.testing.assert_array_equal(codes, expected[0].numpy())


def test_a_long_continuation_with_a_melody_is_audiocrafts(exact_engine: BatchingEngine, cache: LoadedModels) -> None:
    case = params("demo-melody", duration_seconds=31.0, melody=noise(3.0, seed=1), audio_prompt=noise(28.5))
    assert_same_codes(exact_engine, cache, [case])


def test_the_waveform_is_that_of_audiocrafts_codes(cache: LoadedModels) -> None:
    engine = BatchingEngine(cache, Config(precision="exact").engine)  # type: ignore[arg-type]
    case = params(duration_seconds=3.0)
    request = engine.submit(case)
    result = request.result(SECONDS)
    with cache.lease("demo") as model:
        codes = torch.from_numpy(reference_codes(model, case))
        expected = model.decode_codes(codes[None]).numpy()

    assert result.num_frames == 150
    assert result.sample_rate == 32_000
    np.testing.assert_allclose(result.waveform, expected, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(list(request.chunks()), axis=1), result.waveform)
    engine.close()


def decode_alone(backend: Any, lm: Any, case: GenerationParams, num_frames: int) -> torch.Tensor:
    """Decode one guided request on a backend, without an engine."""
    cond, _ = conditions(lm, case.description)
    pattern = DelayPattern(lm.pattern_provider.delays, lm.special_token_id)
    sequence = pattern.sequence(torch.zeros(lm.num_codebooks, 0, dtype=torch.long), num_frames)
    backend.begin(0, cond["description"][0][0])
    backend.begin(1, None)
    seq = Sequence(EngineRequest(case), [0, 1], pattern)
    seq.rows = [Conditioning(None, None)] * 2
    sampler = TorchSampler(generator_noise)
    for column in range(1, sequence.shape[1]):
        tokens = sequence[:, column - 1].expand(2, -1)
        (sampled,) = sampler.sample([seq], backend.decode([0, 1], tokens, [column - 1] * 2))
        sequence[:, column] = torch.where(sequence[:, column] < 0, sampled, sequence[:, column])
    return pattern.codes(sequence, 0, num_frames)


@pytest.fixture(scope="module")
def released_shape() -> Any:
    """A language model of the released small shape, initialized as audiocraft does (lm.py, depthwise "current")."""
    lm = build_lm(dim=1024, num_heads=16, num_layers=24, codebook_size=2048, gain=1.0)
    for index, layer in enumerate(lm.transformer.layers):
        for parameter in layer.parameters():
            if parameter.dim() == 2:
                parameter.div_((2 * (index + 1)) ** 0.5)
    return lm


@pytest.mark.fault
def test_the_shape_of_the_released_small_model_gives_audiocrafts_tokens(released_shape: Any) -> None:
    num_frames = 10
    backend = default_backend(decoder_weights(released_shape), "exact", num_slots=2, capacity=num_frames + 4)
    case = params()

    codes = decode_alone(backend, released_shape, case, num_frames)

    expected = generate(released_shape, case.description, case.seed, num_frames, cfg_coef=case.cfg_coef)
    assert torch.equal(codes, expected)


def test_auto_meets_the_accuracy_rule(released_shape: Any) -> None:
    num_steps = 12
    cond, _ = conditions(released_shape, params().description)
    guided = []
    tokens = torch.randint(2048, (num_steps, 4), generator=torch.Generator().manual_seed(1))
    for precision in ("exact", "auto"):
        backend = default_backend(decoder_weights(released_shape), precision, num_slots=2, capacity=num_steps)
        backend.begin(0, cond["description"][0][0])
        backend.begin(1, None)
        steps = [backend.decode([0, 1], row.expand(2, -1), [index] * 2).clone() for index, row in enumerate(tokens)]
        guided.append(torch.stack([apply_cfg(cond_row, uncond_row, 3.0) for cond_row, uncond_row in steps]).double())
        backend.close()
    exact, auto = guided
    log_p, log_q = exact.log_softmax(-1), auto.log_softmax(-1)

    assert (log_p.exp() * (log_p - log_q)).sum(-1).mean() <= 0.005  # nats
    assert (auto - exact).norm() <= 0.06 * exact.norm()


@pytest.mark.parametrize("make_linear", [plain_linear, packed_linear])
def test_the_torch_backend_gives_audiocrafts_tokens(make_linear: Any) -> None:
    lm = build_lm()
    case = params(top_k=50)
    backend = TorchBackend(decoder_weights(lm), num_slots=2, capacity=204, make_linear=make_linear)

    codes = decode_alone(backend, lm, case, 200)

    assert torch.equal(codes, generate(lm, case.description, case.seed, 200, cfg_coef=case.cfg_coef, top_k=50))
