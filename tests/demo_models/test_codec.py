"""The synthesizer and the codec that renders it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from audiocraft_api.core.params import AudioInput
from demo_models import codec, measures
from demo_models.composer import Codes
from demo_models.score import FRAME, PARTS
from demo_models.synthesizer import Grains, render


def test_the_codec_renders_what_the_synthesizer_does(
    loaded: Any, pieces: list[Codes], grains: Grains, solution: codec.Solution
) -> None:
    for codes in pieces:
        decoded = loaded.decode_codes(torch.tensor(codes)[None])[0].numpy()
        assert np.abs(decoded - codec.decode(solution, codes)).max() < 1e-4
        assert measures.signal_to_noise(render(codes, grains), decoded) > 30


def test_the_encoder_finds_the_codes_of_a_clip_of_16_bits(loaded: Any, pieces: list[Codes]) -> None:
    codes = pieces[2][:, :250]
    wave = loaded.decode_codes(torch.tensor(codes)[None]).numpy()
    rounded = (np.round(wave * 32767) / 32767).astype(np.float32)
    found = loaded.encode(AudioInput(rounded, 32_000))[0].numpy()
    assert (found[:, : codes.shape[1]] == codes).mean() > 0.99


def test_loudness_and_peak_are_those_of_music(pieces: list[Codes], grains: Grains) -> None:
    for codes in pieces:
        wave = render(codes, grains)
        assert -22 < measures.loudness(wave) < -14
        assert np.abs(wave).max() < 1


def test_there_are_no_clicks_where_frames_join(pieces: list[Codes], grains: Grains) -> None:
    for codes in pieces:
        assert measures.edge_roughness(render(codes, grains)) < 1.2
    assert measures.broadband_peak(render(pieces[0], grains)) < -55


def test_the_click_measures_find_a_click(pieces: list[Codes], grains: Grains) -> None:
    wave = render(pieces[0], grains).copy()
    assert measures.edge_roughness(np.where(np.arange(len(wave)) // FRAME % 2, wave, -wave)) > 2
    wave[12_345] += 0.3
    assert measures.broadband_peak(wave) > -45


@pytest.mark.parametrize("index", [0, 2])
def test_the_tempo_is_heard_in_the_sound(index: int, pieces: list[Codes], grains: Grains) -> None:
    expected = (750 / 8, 750 / 6, 750 / 10)[index]
    heard = measures.tempo(render(np.tile(pieces[index], 2), grains))
    assert min(abs(heard * factor / expected - 1) for factor in (0.5, 1, 2)) < 0.03


def test_silence_is_silent(loaded: Any) -> None:
    codes = np.zeros((4, 50), np.int64)
    codes[0] = PARTS[0].onset("none", (6, 1))
    assert np.abs(loaded.decode_codes(torch.tensor(codes)[None]).numpy()).max() < 1e-3
