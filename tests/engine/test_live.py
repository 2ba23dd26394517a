"""Performances: live ones equal their replay, and in `exact` audiocraft's own model with the same changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiocraft_api.core.errors import Canceled, InvalidRequest
from audiocraft_api.core.live_request import Draft, LiveRequest, Outcome
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.performance import Change, Controls, Performance, WeightedPrompt
from audiocraft_api.engine.batching import BatchingEngine
from support.engines import (
    SECONDS,
    LoadedModels,
    assert_same_codes,
    codes_engine,
    demo_model,
    eager_runner,
    params,
    wait_for_codes,
)

WINDOW_FRAMES = 30
STRIDE = {"extend_stride_seconds": 0.4}  # 20 frames
JAZZ, ROCK, CHOIR, DRUMS = "jazz piano", "rock guitar", "a slow choir with organ and strings", "drums"


def controls(*prompts: tuple[str, float], **others: Any) -> Controls:
    return Controls(tuple(WeightedPrompt(*prompt) for prompt in prompts), **others)


def performed(num_frames: int, *changes: Change, seed: int = 5, model: str = "demo") -> GenerationParams:
    return params(model, description="", seed=seed, performance=Performance(changes, num_frames), **STRIDE)


@pytest.fixture(scope="module")
def short_windows(demo_checkpoints: Path) -> LoadedModels:
    """Demo models with windows of 30 frames."""

    def load(name: str) -> Any:
        model = copy.copy(demo_model(demo_checkpoints, name))
        model.max_window_frames = WINDOW_FRAMES
        return model

    return LoadedModels(load)


@pytest.fixture(scope="module", params=["exact", "auto", "graph"])
def any_engine(request: pytest.FixtureRequest, short_windows: LoadedModels) -> Iterator[BatchingEngine]:
    """An engine over each model runner."""
    settings = {"model_runner_factory": eager_runner} if request.param == "graph" else {"precision": request.param}
    engine = codes_engine(short_windows, **settings)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(short_windows: LoadedModels) -> Iterator[BatchingEngine]:
    engine = codes_engine(short_windows)
    yield engine
    engine.close()


JAZZ_ONLY = Change(0, controls((JAZZ, 1)))


@pytest.mark.parametrize(
    "changes",
    [
        [Change(0, controls((JAZZ, 3))), Change(10, controls((ROCK, 1))), Change(31, controls((CHOIR, 1), top_k=5))],
        [Change(0, controls((JAZZ, 1), (ROCK, 2), (DRUMS, -1))), Change(15, controls((CHOIR, 1), cfg_coef=6.0))],
        [JAZZ_ONLY, Change(5, controls((ROCK, 1), (DRUMS, -2)), 17), Change(12, controls((CHOIR, 1)), 10)],
        [JAZZ_ONLY, Change(12, controls((ROCK, 1)), resets_context=True), Change(42, controls((CHOIR, 1)), 10, True)],
        [JAZZ_ONLY, Change(30, controls((ROCK, 1), top_p=0.9)), Change(50, controls((JAZZ, 1)), 0, True)],
    ],
    ids=["swaps", "blends", "transitions", "resets", "at windows"],
)
def test_a_performance_has_the_codes_of_audiocrafts_own_model(
    engine: BatchingEngine, short_windows: LoadedModels, changes: list[Change]
) -> None:
    assert_same_codes(engine, short_windows, [performed(56, *changes)])


def test_one_prompt_is_played_as_an_ordinary_request(engine: BatchingEngine) -> None:
    ordinary = engine.submit(params(**STRIDE, description=JAZZ, duration_seconds=1.0))
    codes = wait_for_codes(engine.submit(performed(26, JAZZ_ONLY)))
    np.testing.assert_array_equal(codes, wait_for_codes(ordinary)[:, :26])


def play(engine: BatchingEngine, case: GenerationParams, script: dict[int, Draft | None]) -> tuple[LiveRequest, Any]:
    """Play live. Each draft is submitted when its number of frames is complete; None stops the performance."""
    request = LiveRequest(case)
    engine.submit_live(request)
    blocks: list[Any] = []
    outcomes: list[Outcome] = []
    for num_frames, draft in sorted(script.items()):
        request.allow(num_frames)
        num_outcomes = len(script) - 1 if draft is None else 0
        while request.num_frames_done < num_frames or len(outcomes) < num_outcomes:
            found, settled = request.take(0.05)
            blocks, outcomes = blocks + found, outcomes + settled
        if draft is None:
            request.stop()
        else:
            request.change(draft)
    assert request.wait(SECONDS)
    found, settled = request.take(0)
    assert not settled
    assert [outcome.draft for outcome in outcomes] == [draft for draft in script.values() if draft]
    return request, np.concatenate([*blocks, *found], axis=1).astype(np.int64)


def replayed(request: LiveRequest) -> GenerationParams:
    return performed(request.num_frames_done, *request.changes, seed=request.params.seed)


def random_draft(draw: random.Random) -> Draft:
    texts = draw.sample([JAZZ, ROCK, CHOIR, DRUMS], draw.randrange(1, 4))
    prompts = [(text, draw.choice([0.5, 1, 3])) for text in texts[:-1]] + [(texts[-1], draw.choice([1, -1, -3]))]
    if all(weight < 0 for _, weight in prompts):
        prompts = [(texts[-1], 1)]
    sampling = {
        "top_k": draw.choice([0, 20, 250]),
        "top_p": draw.choice([0, 0, 0.8]),
        "cfg_coef": draw.choice([1, 3, 6]),
    }
    state = controls(*prompts, temperature=draw.choice([0.6, 1, 1.4]), **sampling)
    return Draft(state, draw.choice([0, 0, 7, 25]), draw.random() < 0.2)


@pytest.mark.parametrize("seed", range(2))
def test_random_sessions_in_random_company_equal_their_replays(any_engine: BatchingEngine, seed: int) -> None:
    draw = random.Random(seed)
    company = [
        any_engine.submit(params(**STRIDE, seed=number, duration_seconds=draw.uniform(1, 1.2))) for number in range(3)
    ]
    frames = sorted(draw.sample(range(2, 80), 6))
    script: dict[int, Draft | None] = {frame: random_draft(draw) for frame in frames}
    request, codes = play(any_engine, performed(10_000, JAZZ_ONLY), script | {90: None})
    assert len(request.changes) == 7
    assert codes.shape[1] == request.num_frames_done >= 90
    np.testing.assert_array_equal(wait_for_codes(any_engine.submit(replayed(request))), codes)
    for other in company:
        wait_for_codes(other)
    alone = wait_for_codes(any_engine.submit(params(**STRIDE, seed=1, duration_seconds=1.0)))
    np.testing.assert_array_equal(wait_for_codes(company[1])[:, :45], alone[:, :45])


@pytest.mark.parametrize("resets_context", [False, True])
def test_frames_before_a_change_stay_as_they_are(engine: BatchingEngine, resets_context: bool) -> None:
    plain = wait_for_codes(engine.submit(performed(70, JAZZ_ONLY)))
    change = Change(41, controls((ROCK, 1)), resets_context=resets_context)
    changed = wait_for_codes(engine.submit(performed(70, JAZZ_ONLY, change)))
    same = (plain == changed).all(axis=0)
    assert same[:41].all()
    assert not same[41:].all()


def test_the_end_of_a_performance_does_not_change_its_frames(engine: BatchingEngine) -> None:
    short, long = (wait_for_codes(engine.submit(performed(num_frames, JAZZ_ONLY))) for num_frames in (30, 80))
    np.testing.assert_array_equal(short, long[:, :30])


def test_generation_waits_for_the_listener_and_holds_up_no_other_request(engine: BatchingEngine) -> None:
    request = LiveRequest(performed(10_000, JAZZ_ONLY))
    request.allow(25)
    engine.submit_live(request)
    for number in range(2):  # the live request is complete up to its limit before or during the first
        wait_for_codes(engine.submit(params(**STRIDE, seed=number, duration_seconds=1.0)))
    assert request.num_frames_done == 25
    request.stop()
    assert request.wait(SECONDS)
    assert request.result().num_frames == 25


def test_a_canceled_performance_frees_its_slots(short_windows: LoadedModels) -> None:
    engine = codes_engine(short_windows, max_batch_requests=1)
    request = LiveRequest(performed(10_000, JAZZ_ONLY))
    engine.submit_live(request)
    waiting = engine.submit(params(**STRIDE, duration_seconds=1.0))
    request.cancel()
    assert wait_for_codes(waiting).shape[1] == 50
    with pytest.raises(Canceled):
        request.result(SECONDS)
    engine.close()


def test_a_performance_that_stops_before_its_first_frame_is_canceled(engine: BatchingEngine) -> None:
    request = LiveRequest(performed(10_000, JAZZ_ONLY))
    request.stop()
    engine.submit_live(request)
    with pytest.raises(Canceled):
        request.result(SECONDS)


def test_a_performance_ends_at_its_limit(engine: BatchingEngine) -> None:
    request = LiveRequest(performed(7, JAZZ_ONLY))
    request.allow(1_000)
    engine.submit_live(request)
    assert request.result(SECONDS).num_frames == 7
    assert sum(block.shape[1] for block in request.take(0)[0]) == 7


def test_a_change_that_the_runner_cannot_take_is_rejected_and_the_music_goes_on(short_windows: LoadedModels) -> None:
    engine = codes_engine(short_windows, model_runner_factory=eager_runner)
    too_long = Draft(controls((JAZZ, 1), *((f"{number} " + "lo-fi " * 200, 1) for number in range(3))))
    request, codes = play(engine, performed(10_000, JAZZ_ONLY), {5: too_long, 40: None})
    assert request.changes == (JAZZ_ONLY,)
    expected = wait_for_codes(engine.submit(performed(40, JAZZ_ONLY)))
    np.testing.assert_array_equal(codes[:, :40], expected)
    engine.close()


def test_a_model_with_a_prefix_is_refused_by_name(engine: BatchingEngine) -> None:
    request = engine.submit(performed(10, JAZZ_ONLY, model="demo-melody"))
    with pytest.raises(InvalidRequest, match="demo-melody"):
        request.result(SECONDS)
