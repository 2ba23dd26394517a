"""Complete frames are sent to the codec immediately or, with many requests, together."""

from __future__ import annotations

import itertools

import pytest

from audiocraft_api.engine.codec.batching import EARLY_FRAMES, FEW_FRAMES, MANY_REQUESTS, SHARED_STEPS, CodecBatching
from audiocraft_api.engine.codec.decoder import BLOCK_FRAMES

NUM_STEPS = 200


def delivery_steps(joined_at: list[int], *, is_shared: bool = True, steps_per_pass: int = 1) -> list[list[int]]:
    """Simulate requests that join at these steps; return the steps at which each of them sends frames."""
    batching = CodecBatching(is_shared=is_shared)
    sent: list[list[int]] = [[] for _ in joined_at]
    delivered = [0] * len(joined_at)
    for step in range(0, NUM_STEPS, steps_per_pass):
        running = [index for index, start in enumerate(joined_at) if start <= step]
        batching.count_steps(len(running), steps_per_pass)
        for index in running:
            done = step + steps_per_pass - joined_at[index]
            if done - delivered[index] >= batching.min_frames(delivered[index]):
                delivered[index] = done
                sent[index].append(step)
    return sent


@pytest.mark.parametrize(("num_requests", "is_shared"), [(1, True), (MANY_REQUESTS - 1, True), (8, False)])
def test_frames_of_few_requests_or_with_a_gpu_are_sent_immediately(num_requests: int, is_shared: bool) -> None:
    for steps in delivery_steps([0] * num_requests, is_shared=is_shared):
        assert steps == list(range(FEW_FRAMES - 1, NUM_STEPS, FEW_FRAMES))


def test_frames_of_many_requests_are_sent_together_once_per_block_whenever_they_joined() -> None:
    sent = delivery_steps([0, 3, 4, 10, 11, 40, 90])
    last_steps = {tuple(step for step in steps if step >= 130) for steps in sent}
    (together,) = last_steps
    assert together == tuple(range(together[0], NUM_STEPS, SHARED_STEPS))


@pytest.mark.parametrize("joined_at", range(60, 90))
def test_a_requests_first_blocks_never_wait_for_others(joined_at: int) -> None:
    steps = delivery_steps([0, 0, 0, joined_at])[-1]
    for num_frames in (BLOCK_FRAMES[0], EARLY_FRAMES):  # as if alone, or sooner if all are due at that step
        assert any(num_frames <= step + 1 - joined_at < num_frames + FEW_FRAMES for step in steps)


def test_frames_are_sent_as_often_with_many_steps_per_pass() -> None:
    for steps in delivery_steps([0] * 8, steps_per_pass=8):
        assert max(later - sooner for sooner, later in itertools.pairwise(steps)) <= SHARED_STEPS + 8
