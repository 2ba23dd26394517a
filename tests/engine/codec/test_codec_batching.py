"""Finished frames go to the codec early or together."""

from __future__ import annotations

import itertools

import pytest

from audiocraft_api.engine.codec.batching import EARLY_FRAMES, FEW_FRAMES, SHARED_STEPS, CodecBatching
from audiocraft_api.engine.codec.decoder import BLOCK_FRAMES
from audiocraft_api.engine.codec.lstm import NUM_ROWS

NUM_STEPS = 200


def deliveries(joined_at: list[int], *, is_shared: bool = True, steps_of_a_pass: int = 1) -> list[list[int]]:
    """Run requests that join at these steps and make a frame each step; return at which steps frames of each went."""
    delivery = CodecBatching(is_shared=is_shared)
    went: list[list[int]] = [[] for _ in joined_at]
    delivered = [0] * len(joined_at)
    for step in range(0, NUM_STEPS, steps_of_a_pass):
        running = [index for index, start in enumerate(joined_at) if start <= step]
        delivery.begin(len(running), steps_of_a_pass)
        for index in running:
            done = step + steps_of_a_pass - joined_at[index]
            if done - delivered[index] >= delivery.min_frames(delivered[index]):
                delivered[index] = done
                went[index].append(step)
    return went


@pytest.mark.parametrize(("num_requests", "is_shared"), [(1, True), (NUM_ROWS - 1, True), (8, False)])
def test_frames_of_few_requests_or_beside_a_gpu_go_as_they_come(num_requests: int, is_shared: bool) -> None:
    for steps in deliveries([0] * num_requests, is_shared=is_shared):
        assert steps == list(range(FEW_FRAMES - 1, NUM_STEPS, FEW_FRAMES))


def test_frames_of_many_requests_go_together_once_in_a_block_whenever_they_joined() -> None:
    went = deliveries([0, 3, 4, 10, 11, 40, 90])
    last_steps = {tuple(step for step in steps if step >= 130) for steps in went}
    (together,) = last_steps
    assert together == tuple(range(together[0], NUM_STEPS, SHARED_STEPS))


@pytest.mark.parametrize("joined_at", range(60, 90))
def test_a_requests_first_blocks_never_wait_for_others(joined_at: int) -> None:
    steps = deliveries([0, 0, 0, joined_at])[-1]
    for num_frames in (BLOCK_FRAMES[0], EARLY_FRAMES):  # as if it were alone, or sooner, when all are due just then
        assert any(num_frames <= step + 1 - joined_at < num_frames + FEW_FRAMES for step in steps)


def test_passes_of_many_steps_hand_over_as_often() -> None:
    for steps in deliveries([0] * 8, steps_of_a_pass=8):
        assert max(later - sooner for sooner, later in itertools.pairwise(steps)) <= SHARED_STEPS + 8
