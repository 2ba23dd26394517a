"""Changing the tempo of audio: its length, its pitch, its distortion, and its beats."""

from __future__ import annotations

import numpy as np
import pytest

from audiocraft_api.audio.beats import track_beats
from audiocraft_api.audio.stretching import at_tempo
from audiocraft_api.core.errors import ConversionFailed
from support.rhythms import RATE, rhythm


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_the_tempo_changes_and_the_pitch_does_not(factor: float) -> None:
    times = np.arange(4 * RATE) / RATE
    tone = np.stack([0.3 * np.sin(2 * np.pi * 440 * times), 0.1 * np.sin(2 * np.pi * 660 * times)]).astype(np.float32)
    changed = at_tempo(tone, RATE, factor)
    assert changed.shape[0] == 2
    assert changed.shape[1] / RATE == pytest.approx(4 / factor, abs=0.04)
    middle = changed[0, RATE // 2 : 3 * RATE] * np.hanning(5 * RATE // 2)
    power = np.abs(np.fft.rfft(middle)) ** 2
    is_tone = np.abs(np.fft.rfftfreq(len(middle), 1 / RATE) - 440) < 5
    assert 10 * np.log10(power[is_tone].sum() / power[~is_tone].sum()) > 40


@pytest.mark.parametrize("factor", [0.97, 0.99, 1.02])
def test_the_beats_have_the_new_tempo(factor: float) -> None:
    changed = at_tempo(rhythm(110, 12)[None], RATE, factor)[0]
    beats = track_beats(changed, RATE, 110 * factor)
    intervals = np.diff(beats)
    assert np.mean(intervals) == pytest.approx(60 / (110 * factor), rel=3e-3)
    assert np.abs(intervals - 60 / (110 * factor)).max() < 0.03


def test_a_failure_of_ffmpeg_is_an_error_of_the_conversion() -> None:
    with pytest.raises(ConversionFailed, match="tempo"):
        at_tempo(np.zeros((1, RATE), np.float32), RATE, -1.0)
