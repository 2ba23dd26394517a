"""Controls that audiocraft does not have, in `exact`: the tokens of its loop with other conditions (`guided_loop`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.core.params import GenerationParams, Segment
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.model.guided_loop import generate_window
from support.engines import (
    LoadedModels,
    assert_same_codes,
    codes_engine,
    noise,
    params,
    reference_codes,
    short_window_model,
    wait_for_codes,
)


def reference_loop(model: Any, case: GenerationParams, negative: str | None = None) -> Any:
    """Return the codes [K, T] of one window of `guided_loop`, whatever the parameters ask for."""
    model.to_float32()
    conditions = model.condition_tensors(case.description, case.melody, negative_description=negative)
    num_frames = model.num_frames(case.duration_seconds)
    prompt = torch.zeros(1, model.num_codebooks, 0, dtype=torch.long)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(case.seed)
        return generate_window(model.lm, case, prompt, num_frames, lambda _: conditions, lambda *_: None)[0].numpy()


@pytest.mark.parametrize(
    "case",
    [
        params(top_p=0.9),
        params(cfg_coef=5.0, temperature=1.2, top_k=0),
        params("demo-melody", melody=noise(2.0)),
        params("demo-stereo", use_sampling=False),
    ],
    ids=["top_p", "free", "melody", "stereo greedy"],
)
def test_the_reference_loop_is_audiocrafts_without_controls(cache: LoadedModels, case: GenerationParams) -> None:
    with cache.lease(case.model) as model:
        np.testing.assert_array_equal(reference_loop(model, case), reference_codes(model, case))


def test_a_negative_prompt_is_the_text_of_the_unconditional_row(
    exact_engine: BatchingEngine, cache: LoadedModels
) -> None:
    short = {"duration_seconds": 1.0, "negative_description": "drums"}
    long_text = "loud distorted drums, screaming guitars and a crowd that shouts along with all of it"
    cases = [
        params(**short),
        params(duration_seconds=4.0, negative_description=long_text, top_p=0.8, cfg_coef=6.0, audio_prompt=noise(1.0)),
        params(**short, cfg_coef=0.0, use_sampling=False),
        params(**short, description=""),
        params("demo-stereo", **short),
        params("demo-melody", duration_seconds=1.0, negative_description=long_text, melody=noise(2.0)),
        params("demo-melody", **short, description=long_text),
    ]
    assert_same_codes(exact_engine, cache, cases)


def test_a_negative_prompt_changes_the_tokens_and_one_like_the_prompt_turns_guidance_off(
    exact_engine: BatchingEngine,
) -> None:
    plain, negative, same, off = (
        wait_for_codes(exact_engine.submit(case))
        for case in (
            params(),
            params(negative_description="drums"),
            params(negative_description=params().description),
            params(cfg_coef=1.0),
        )
    )
    assert not np.array_equal(plain, negative)
    np.testing.assert_array_equal(same, off)


def test_a_negative_prompt_applies_to_every_window(demo_checkpoints: Path) -> None:
    cache = LoadedModels(lambda name: short_window_model(demo_checkpoints, name))
    engine = codes_engine(cache)
    case = params(duration_seconds=20.0, negative_description="drums", audio_prompt=noise(15.0))
    assert_same_codes(engine, cache, [case])
    engine.close()


def segmented(model: str = "demo", *segments: tuple[Any, ...], **changes: Any) -> GenerationParams:
    parts = tuple(Segment(*segment) for segment in segments)
    return params(model, segments=parts, duration_seconds=sum(part.duration_seconds for part in parts), **changes)


def test_segments_change_the_text_at_the_step_that_completes_their_first_frame(
    exact_engine: BatchingEngine, cache: LoadedModels
) -> None:
    cases = [
        segmented("demo", ("jazz piano", 0.5), ("slow dark ambient synth pads with a choir", 0.7), ("jazz piano", 0.3)),
        segmented("demo", ("jazz piano", 0.5, "drums"), ("rock guitar", 0.5), ("rock guitar", 0.5, "bass"), top_p=0.9),
        segmented("demo", ("jazz", 0.1), ("rock", 0.1), ("folk", 0.1), ("pop", 0.8), use_sampling=False),
        segmented("demo", ("jazz piano", 1.0), ("rock guitar", 0.5), ("folk", 0.5), audio_prompt=noise(1.2)),
        segmented("demo", ("jazz piano", 0.5), ("rock guitar", 0.5), cfg_coef=1.0),
        segmented("demo-stereo", ("jazz piano", 0.5), ("rock guitar", 0.5)),
    ]
    assert_same_codes(exact_engine, cache, cases)


def test_tokens_before_a_change_stay_as_they_are(exact_engine: BatchingEngine) -> None:
    plain = params(description="jazz piano", duration_seconds=2.0)
    changed = segmented("demo", ("jazz piano", 0.94), ("rock guitar", 1.06))
    codes = [wait_for_codes(exact_engine.submit(case)) for case in (plain, changed)]
    same = (codes[0] == codes[1]).all(axis=0)
    assert same[:47].all()
    assert not same[47:].all()


def test_equal_segments_are_one_prompt(exact_engine: BatchingEngine) -> None:
    plain = params(description="jazz piano", duration_seconds=1.5, negative_description="drums")
    equal = segmented("demo", *[("jazz piano", 0.5, "drums")] * 3)
    np.testing.assert_array_equal(*(wait_for_codes(exact_engine.submit(case)) for case in (plain, equal)))


def test_a_segment_that_repeats_the_text_of_the_unconditional_row_keeps_both_rows(
    exact_engine: BatchingEngine, cache: LoadedModels
) -> None:
    assert_same_codes(exact_engine, cache, [segmented("demo", ("drums", 0.5, "drums"), ("jazz", 0.5, "drums"))])


def test_segments_reach_over_windows_and_models_with_a_prefix_change_at_the_next_window(demo_checkpoints: Path) -> None:
    cache = LoadedModels(lambda name: short_window_model(demo_checkpoints, name))
    engine = codes_engine(cache)
    cases = [
        segmented("demo", ("jazz piano", 18.0), ("rock guitar", 1.5), ("folk", 0.6), audio_prompt=noise(17.0)),
        segmented("demo-melody", ("jazz piano", 18.0), ("rock guitar", 2.0), audio_prompt=noise(16.0)),
    ]
    assert_same_codes(engine, cache, cases)
    engine.close()
