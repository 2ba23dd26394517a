"""The closed-form delay pattern against audiocraft's own pattern objects."""

from __future__ import annotations

import pytest
import torch

from audiocraft_api.engine.delay import UNKNOWN, DelayPattern
from audiocraft_api.model import xformers_stub
from support.tiny_lm import MONO, STEREO

SPECIAL = 100


@pytest.fixture(params=[MONO, STEREO, (0, 0, 0), (0, 2, 5)], ids=str)
def delays(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.mark.parametrize(("num_frames", "num_prompt_frames"), [(1, 0), (2, 1), (3, 0), (40, 0), (40, 17), (40, 39)])
def test_the_sequence_is_audiocrafts(delays: tuple[int, ...], num_frames: int, num_prompt_frames: int) -> None:
    xformers_stub.install()
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

    prompt = torch.randint(SPECIAL, (len(delays), num_prompt_frames))
    codes = torch.full((1, len(delays), num_frames), UNKNOWN)
    codes[..., :num_prompt_frames] = prompt
    pattern = DelayedPatternProvider(len(delays), list(delays)).get_pattern(num_frames)
    expected, _, _ = pattern.build_pattern_sequence(codes, SPECIAL)

    ours = DelayPattern(delays, SPECIAL)
    sequence = ours.sequence(prompt, num_frames)

    assert torch.equal(sequence, expected[0])
    assert sequence.shape[1] == ours.num_columns(num_frames)
    # The first column to predict follows the prompt's last frame in the codebook without delay.
    assert pattern.get_first_step_with_timesteps(num_prompt_frames) == num_prompt_frames + 1


def test_codes_can_be_read_from_a_sequence(delays: tuple[int, ...]) -> None:
    codes = torch.randint(SPECIAL, (len(delays), 30))
    pattern = DelayPattern(delays, SPECIAL)
    sequence = pattern.sequence(codes, 30)

    assert torch.equal(pattern.codes(sequence, 0, 30), codes)
    assert torch.equal(pattern.codes(sequence, 7, 12), codes[:, 7:12])


def test_a_frame_is_complete_when_its_last_codebook_is_filled(delays: tuple[int, ...]) -> None:
    pattern = DelayPattern(delays, SPECIAL)
    full = pattern.sequence(torch.randint(SPECIAL, (len(delays), 12)), 12)

    for num_filled in range(1, full.shape[1] + 1):
        filled = full.clone()
        filled[:, num_filled:] = UNKNOWN
        num_complete = pattern.num_complete(num_filled)
        is_complete = (pattern.codes(filled, 0, 12) != UNKNOWN).all(dim=0)
        assert is_complete[:num_complete].all()
        assert not is_complete[num_complete : num_complete + 1].any() or num_complete == 12
    assert pattern.num_complete(full.shape[1]) == 12
