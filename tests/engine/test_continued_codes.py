"""Codes of a result: they are what the engine decodes, and a continuation that is given them continues them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.params import AudioInput, Codes
from audiocraft_api.core.request import GenerationResult
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.plain import PlainEngine
from support.engines import SECONDS, LoadedModels, assert_same_codes, noise, params, wait_for_codes


@pytest.fixture(params=[BatchingEngine, PlainEngine])
def engine(request: pytest.FixtureRequest, cache: LoadedModels) -> Iterator[Engine]:
    engine: Engine = request.param(cache, Config(precision="exact").engine)
    yield engine
    engine.close()


def generate(engine: Engine, **changes: Any) -> GenerationResult:
    return engine.submit(params(**changes)).result(SECONDS)


def codes_of(result: GenerationResult) -> Codes:
    assert result.codes is not None
    return result.codes


def given(seconds: float, codes: Codes) -> AudioInput:
    """Return silence with codes. Encoded, it has other codes."""
    return AudioInput(np.zeros((1, int(32_000 * seconds)), np.float32), 32_000, codes)


@pytest.mark.parametrize("model", ["demo", "demo-stereo"])
def test_a_continuation_begins_with_the_codes_that_it_is_given(engine: Engine, model: str) -> None:
    first = codes_of(generate(engine, model=model, duration_seconds=1.0))
    audio = given(1.0, first)
    second = codes_of(generate(engine, model=model, duration_seconds=1.5, seed=6, audio_prompt=audio))
    assert first.codec == second.codec
    assert (first.tokens.shape[1], second.tokens.shape[1]) == (50, 75)
    np.testing.assert_array_equal(second.tokens[:, :50], first.tokens)


def test_codes_of_another_codec_and_impossible_tokens_are_not_used(engine: Engine) -> None:
    first = codes_of(generate(engine, duration_seconds=0.5))
    encoded = AudioInput(given(0.5, first).waveform, 32_000)
    expected = codes_of(generate(engine, duration_seconds=0.7, audio_prompt=encoded)).tokens
    impossible = first.tokens.copy()
    impossible[0, 3] = 2048
    for codes in (Codes(first.tokens, "07e4"), Codes(impossible, first.codec)):
        found = codes_of(generate(engine, duration_seconds=0.7, audio_prompt=given(0.5, codes))).tokens
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(expected[:, :25], first.tokens)


def test_mono_and_stereo_models_have_different_codecs(cache: LoadedModels) -> None:
    digests = {}
    for name in ("demo", "demo-stereo"):
        with cache.lease(name) as model:
            digests[name] = model.codec_digest
    assert len(set(digests.values())) == 2


def test_the_codes_of_a_result_are_those_that_were_decoded(exact_engine: BatchingEngine, cache: LoadedModels) -> None:
    first = exact_engine.submit(params(duration_seconds=1.0, audio_prompt=noise(0.4))).result(SECONDS)
    codes = codes_of(first)
    np.testing.assert_array_equal(codes.tokens, first.waveform)  # this engine's waveforms are codes
    case = params(duration_seconds=3.0, seed=6, audio_prompt=given(1.0, codes))
    assert_same_codes(exact_engine, cache, [case])
    np.testing.assert_array_equal(wait_for_codes(exact_engine.submit(case))[:, :50], codes.tokens)
