"""All controls in one batch: each request gives the same codes as alone. Random mixes, on every kind of backend."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiocraft_api.core.params import AudioInput, Codes, GenerationParams, Segment
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend
from support.engines import (
    LoadedModels,
    codes_engine,
    eager_runner,
    noise,
    params,
    runner_over,
    short_window_model,
    wait_for_codes,
)

NUM_REQUESTS = 5
TEXTS = ["", "jazz", "slow dark ambient synth pads with a long soft choir", "rock guitar"]

RUNNERS: dict[str, Callable[..., Any]] = {
    "native": runner_over(
        lambda b: b, lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="int6")
    ),
    "torch": runner_over(lambda b: b, lambda weights, _, **sizes: TorchBackend(weights, **sizes)),
    "cuda-eager": eager_runner,
}


def segments(draw: random.Random, given_seconds: float, seconds: float) -> tuple[Segment, ...]:
    """Return segments of this total duration, of which the first has all of the audio that is continued."""
    times = sorted(draw.uniform(given_seconds + 0.1, seconds) for _ in range(draw.randrange(1, 3)))
    return tuple(
        Segment(draw.choice(TEXTS), end - start, draw.choice([None, "drums"]))
        for start, end in pairwise([0.0, *times, seconds])
    )


def audio_to_continue(draw: random.Random, model: Any, seconds: float) -> AudioInput:
    """Return audio of whole frames, sometimes with codes of its own."""
    audio = noise(round(seconds * 50) / 50, seed=draw.randrange(9))
    if draw.random() < 0.5:
        return audio
    shape = model.num_codebooks, round(seconds * 50)
    tokens = np.random.default_rng(draw.randrange(9)).integers(0, model.codebook_size, shape, np.uint16)
    return AudioInput(audio.waveform, audio.sample_rate, Codes(tokens, model.codec_digest))


def random_case(draw: random.Random, model: Any, *, is_long: bool) -> GenerationParams:
    """Return a request for 0.4 to 1.2 seconds of new audio; a long one is continued over several windows."""
    given = draw.uniform(18.5, 18.9) if is_long else draw.choice([0.0, draw.uniform(0.1, 0.9)])
    seconds = given + draw.uniform(0.6 if is_long else 0.4, 1.2)
    return params(
        model.spec.name,
        description=draw.choice(TEXTS),
        duration_seconds=seconds,
        extend_stride_seconds=draw.choice([1.0, 18.0]),
        segments=segments(draw, given, seconds) if draw.random() < 0.5 else (),
        negative_description=draw.choice([None, "drums", "loud distorted electric guitars and drums"]),
        audio_prompt=audio_to_continue(draw, model, given) if given else None,
        melody=noise(1.0, seed=draw.randrange(9)) if model.has_melody and draw.random() < 0.7 else None,
        seed=draw.randrange(2**40),
        use_sampling=draw.random() < 0.8,
        top_p=draw.choice([0.0, 0.0, 0.9]),
        cfg_coef=draw.choice([1.0, 3.0, 6.0]),
    )


@pytest.mark.parametrize(
    ("runner", "name"),
    [*((runner, name) for runner in RUNNERS for name in ("demo", "demo-melody")), ("native", "demo-stereo")],
)
def test_any_mix_of_controls_gives_the_codes_of_each_request_alone(
    demo_checkpoints: Path, runner: str, name: str
) -> None:
    draw = random.Random(f"{runner} {name}")
    cache = LoadedModels(lambda name: short_window_model(demo_checkpoints, name))
    engine = codes_engine(cache, max_batch_requests=NUM_REQUESTS, model_runner_factory=RUNNERS[runner])
    with cache.lease(name) as model:
        cases = [random_case(draw, model, is_long=index == 0) for index in range(NUM_REQUESTS)]
    together = [engine.submit(case) for case in cases]
    in_batch = [wait_for_codes(request) for request in together]
    for case, codes in zip(cases, in_batch, strict=True):
        np.testing.assert_array_equal(codes, wait_for_codes(engine.submit(case)))
    engine.close()
