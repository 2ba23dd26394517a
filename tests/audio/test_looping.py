"""Loops that are cut out of synthesized music: exact length, no jump where they close, beats that go on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from audiocraft_api.audio.beats import track_beats
from audiocraft_api.audio.looping import CROSS_FADE_SECONDS, LoopShape, beats_per_bar, closed, find_loop
from audiocraft_api.core.params import Waveform
from support.loops import assert_no_jump
from support.rhythms import RATE, rhythm


def music(bpm: float, shape: LoopShape, seed: int = 0) -> Waveform:
    return rhythm(bpm, shape.generated_seconds, seed=seed)[None]


@pytest.mark.parametrize(("signature", "beats"), [(None, 4), ("4/4", 4), ("3/4", 3), ("6/8", 3)])
def test_a_bar_has_the_quarter_notes_of_the_time_signature(signature: str | None, beats: int) -> None:
    assert beats_per_bar(signature) == beats


@pytest.mark.parametrize(("bpm", "bars", "beats"), [(120, 2, 4), (97, 3, 4), (173, 7, 3), (60, 1, 3)])
def test_the_length_is_exact_to_the_sample(bpm: int, bars: int, beats: int) -> None:
    for rate in (32_000, 44_100, 16_000):
        exact = Fraction(bars * beats * 60 * rate, bpm)
        assert abs(LoopShape(bpm, bars, beats).num_samples(rate) - exact) <= Fraction(1, 2)


@pytest.mark.parametrize(("played", "bpm"), [(100, 100), (98.2, 100), (102.6, 100), (126, 125), (80, 160)])
@pytest.mark.parametrize("beats", [3, 4])
def test_a_loop_has_the_length_and_goes_on_without_a_jump(played: float, bpm: int, beats: int) -> None:
    shape = LoopShape(bpm, 2, beats)
    loop, tempo = find_loop(music(played, shape), RATE, shape)
    assert loop is not None
    assert tempo.bpm == loop.tempo_bpm == pytest.approx(played * round(bpm / played), rel=2e-3)
    assert loop.waveform.shape == (1, shape.num_samples(RATE))
    assert abs(loop.stretch - bpm / loop.tempo_bpm) < 1e-6 or loop.stretch == 1
    assert_no_jump(loop.waveform, RATE, shape)


def test_the_beats_go_on_when_a_loop_is_repeated() -> None:
    shape = LoopShape(112, 2, 4)
    loop, _ = find_loop(music(110, shape), RATE, shape)
    assert loop is not None
    beats = track_beats(np.tile(loop.waveform[0], 3), RATE, 112)
    intervals = np.diff(beats[1:-1])
    assert np.abs(intervals - 60 / 112).max() < 0.03


@pytest.mark.parametrize("played", [105, 94])
def test_music_at_another_tempo_has_no_loop_but_a_measured_tempo(played: float) -> None:
    shape = LoopShape(100, 2, 4)
    loop, tempo = find_loop(music(played, shape), RATE, shape)
    assert loop is None
    assert tempo.estimated_bpm == pytest.approx(played, rel=0.02)


def test_silence_has_no_loop() -> None:
    shape = LoopShape(100, 1, 4)
    loop, tempo = find_loop(np.zeros((2, round(shape.generated_seconds * RATE)), np.float32), RATE, shape)
    assert loop is None
    assert tempo.estimated_bpm is None


def test_music_that_is_not_repeated_where_the_loop_would_close_has_no_loop() -> None:
    shape = LoopShape(100, 2, 4)
    samples = music(100, shape)[:, : round(shape.seconds * RATE)]  # nothing to close with
    assert find_loop(samples, RATE, shape)[0] is None


def test_both_channels_of_stereo_are_cut_at_the_same_place() -> None:
    shape = LoopShape(100, 1, 4)
    mono = music(100, shape)
    loop, _ = find_loop(np.concatenate((mono, 0.5 * mono)), RATE, shape)
    assert loop is not None
    np.testing.assert_allclose(loop.waveform[1], 0.5 * loop.waveform[0], atol=1e-6)


def test_only_the_end_of_a_loop_is_cross_faded() -> None:
    source = np.random.default_rng(1).normal(0, 0.1, (1, 20_000)).astype(np.float32)
    start, length, fade = 5000, 10_000, round(CROSS_FADE_SECONDS * RATE)
    loop = closed(source, start, length, RATE)
    np.testing.assert_array_equal(loop[:, :-fade], source[:, start : start + length - fade])
    assert CROSS_FADE_SECONDS <= 0.02
    level = np.sqrt(np.mean(loop[:, -fade:] ** 2))
    assert level == pytest.approx(0.1, rel=0.15)
    np.testing.assert_allclose(loop[0, -1], source[0, start - 1], atol=0.01)


def test_a_periodic_sound_closes_without_a_trace() -> None:
    source = (0.3 * np.sin(2 * np.pi * 100 * np.arange(20_000) / RATE)).astype(np.float32)[None]
    loop = closed(source, 3200, 9600, RATE)
    np.testing.assert_allclose(loop, source[:, 3200:12_800], atol=1e-5)
