"""Tempo and beats of synthesized music, whose beats are known."""

from __future__ import annotations

import numpy as np
import pytest

from audiocraft_api.audio.beats import tempo_near, track_beats
from support.rhythms import RATE, beats_of, rhythm

TEMPOS = [60, 75, 92.3, 100, 125, 140]


@pytest.mark.parametrize("bpm", TEMPOS)
def test_the_tempo_near_the_wanted_one_is_precise(bpm: float) -> None:
    music = rhythm(bpm, 10)
    for wanted in (bpm * 0.98, bpm, bpm * 1.02):
        found = tempo_near(music, RATE, wanted, 0.03).bpm
        assert found == pytest.approx(bpm, rel=1e-3)


@pytest.mark.parametrize("wanted", [97.3 / 1.05, 97.3 * 1.05, 120])
def test_another_tempo_is_not_near(wanted: float) -> None:
    tempo = tempo_near(rhythm(97.3, 10), RATE, wanted, 0.03)
    assert tempo.bpm is None
    assert tempo.estimated_bpm == pytest.approx(97.3, rel=0.02)


def test_double_and_half_of_the_tempo_are_near() -> None:
    assert tempo_near(rhythm(80, 12), RATE, 160, 0.03).bpm == pytest.approx(160, rel=1e-3)
    assert tempo_near(rhythm(120, 12), RATE, 60, 0.03).bpm == pytest.approx(60, rel=1e-3)


def test_silence_and_a_steady_tone_have_no_tempo_near_any() -> None:
    assert tempo_near(np.zeros(8 * RATE, np.float32), RATE, 120, 0.03).bpm is None
    assert len(track_beats(np.zeros(8 * RATE, np.float32), RATE, 120)) == 0


@pytest.mark.parametrize("bpm", TEMPOS)
def test_beats_are_found_within_five_milliseconds(bpm: float) -> None:
    wanted = beats_of(bpm, 9.5)
    found = track_beats(rhythm(bpm, 10), RATE, bpm)
    errors = [found[np.argmin(np.abs(found - beat))] - beat for beat in wanted]
    assert np.abs(errors).max() < 0.005
    assert len(found) <= len(wanted) + 2


def test_beats_follow_a_tempo_that_drifts() -> None:
    first, second = rhythm(100, 6), rhythm(104, 6, first_beat=0.0)
    found = track_beats(np.concatenate((first[: round(5.7 * RATE)], second)), RATE, 102)
    wanted = np.concatenate((beats_of(100, 5.6), 5.7 + beats_of(104, 5.5, first_beat=0.0)))
    errors = [np.abs(found - beat).min() for beat in wanted]
    assert np.max(errors) < 0.02
