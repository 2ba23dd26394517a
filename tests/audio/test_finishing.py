"""Loudness, fades and trimming of waveforms, measured."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import numpy.typing as npt
import pytest

from audiocraft_api.audio.convert import ffmpeg_executable
from audiocraft_api.audio.finishing import Fader, Finishing, finished, silent_samples, trimmed
from audiocraft_api.audio.loudness import at_loudness, loudness, true_peak
from audiocraft_api.core.errors import ConversionFailed

Waveform = npt.NDArray[np.float32]

RATE = 32_000


def tone(seconds: float, level_dbfs: float, *, hertz: float = 997.0, channels: int = 1, rate: int = RATE) -> Waveform:
    """Return a sine [C, T] whose peaks have a level."""
    time = np.arange(round(seconds * rate)) / rate
    return np.tile((10 ** (level_dbfs / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32), (channels, 1))


def beat(seconds: float, *, channels: int = 2, seed: int = 0) -> Waveform:
    """Return soft noise with short loud hits, two per second: audio with high peaks."""
    noise = np.random.default_rng(seed).standard_normal((channels, round(seconds * RATE))).astype(np.float32)
    time = np.arange(noise.shape[1]) / RATE % 0.5
    return (noise * (0.1 + 0.15 * np.exp(-time * 20))).astype(np.float32)


def peak_by_ffmpeg(waveform: Waveform) -> float:
    """Return the true peak in dBTP that ffmpeg measures."""
    command = [ffmpeg_executable(), "-hide_banner", "-f", "f32le", "-ar", str(RATE), "-ac", str(len(waveform))]
    command += ["-i", "pipe:0", "-af", "ebur128=peak=true", "-f", "null", "-"]
    report = subprocess.run(command, input=waveform.T.tobytes(), capture_output=True, check=True).stderr
    return float(re.findall(rb"Peak:\s+(-?[0-9.]+) dBFS", report)[-1])


# --- measuring


@pytest.mark.parametrize("rate", [32_000, 48_000])
@pytest.mark.parametrize("level", [-23.0, -33.0])
def test_the_loudness_of_the_reference_tone_is_its_level(rate: int, level: float) -> None:
    """EBU Tech 3341, cases 1 and 2: a stereo sine of 1 kHz."""
    assert loudness(tone(5, level, hertz=1000, channels=2, rate=rate), rate) == pytest.approx(level, abs=0.1)


def test_silence_and_very_short_audio_have_no_loudness() -> None:
    assert loudness(np.zeros((1, RATE), np.float32), RATE) is None
    assert loudness(tone(0.3, -6), RATE) is None


def test_the_true_peak_lies_between_the_samples() -> None:
    samples = np.tile(np.array([1, 1, -1, -1], np.float32) * np.float32(np.sqrt(0.125)), RATE // 4)[None]
    assert 20 * np.log10(np.abs(samples).max()) == pytest.approx(-9.03, abs=0.01)
    middle = samples * np.hanning(RATE).astype(np.float32)  # the ends of a sharply cut sine have peaks of their own
    assert true_peak(middle) == pytest.approx(-6.02, abs=0.1)
    assert true_peak(np.zeros((2, 100), np.float32)) is None


def test_the_true_peak_is_the_one_that_ffmpeg_measures() -> None:
    waveform = beat(12.0)  # longer than a block
    assert true_peak(waveform) == pytest.approx(peak_by_ffmpeg(waveform), abs=0.3)


def test_loudness_that_cannot_be_measured_in_time_is_an_error() -> None:
    with pytest.raises(ConversionFailed, match="loudness"):
        loudness(tone(1, -6), RATE, timeout_seconds=0.0)


# --- setting the loudness


@pytest.mark.parametrize("target", [-30.0, -23.0, -14.0, -11.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_audio_gets_the_loudness_that_is_asked_for(target: float, channels: int) -> None:
    made = at_loudness(beat(4.0, channels=channels), RATE, target)
    assert loudness(made, RATE) == pytest.approx(target, abs=0.2)
    assert (true_peak(made) or 0.0) <= -0.99
    assert peak_by_ffmpeg(made) <= -0.6  # with sixfold oversampling, and noise has all frequencies
    assert made.dtype == np.float32


def test_without_high_peaks_the_gain_is_linear() -> None:
    waveform = beat(2.0)
    made = at_loudness(waveform, RATE, -30)
    np.testing.assert_allclose(made, waveform * (made[0, 0] / waveform[0, 0]), rtol=1e-5)


def test_the_limiter_lowers_the_peaks_only() -> None:
    waveform = np.concatenate((tone(2.0, -30), tone(2.0, -30)), axis=1)
    waveform[0, RATE] = 0.9
    made = at_loudness(waveform, RATE, -27)
    ratio = np.sqrt(np.mean(made[0, 2 * RATE :] ** 2) / np.mean(made[0, : RATE // 2] ** 2))
    assert ratio == pytest.approx(1.0, abs=1e-3)
    assert made[0, RATE] < 0.9
    assert loudness(made, RATE) == pytest.approx(-27, abs=0.2)


def test_audio_whose_peaks_do_not_allow_the_loudness_stays_below_it() -> None:
    clicks = np.zeros((1, 4 * RATE), np.float32)
    clicks[0, :: RATE // 2] = 0.5
    made = at_loudness(clicks, RATE, -8)
    measured = loudness(made, RATE)
    assert measured is not None
    assert measured < -9
    assert true_peak(made) == pytest.approx(-1.0, abs=0.05)


@pytest.mark.parametrize("waveform", [np.zeros((1, RATE), np.float32), tone(0.2, -6)])
def test_silence_and_very_short_audio_stay_as_they_are(waveform: Waveform) -> None:
    assert at_loudness(waveform, RATE, -14) is waveform


# --- fades


def test_fades_begin_and_end_at_zero() -> None:
    ones = np.ones((2, RATE), np.float32)
    made = finished(ones, RATE, Finishing(fade_in_seconds=0.25, fade_out_seconds=0.5))
    assert made[0, 0] == made[1, -1] == 0
    assert made[0, RATE // 8] == pytest.approx(0.5, abs=1e-3)
    assert made[0, -RATE // 4] == pytest.approx(0.5, abs=1e-3)
    assert (made[:, RATE // 4 : RATE // 2] == 1).all()
    assert (np.diff(made[0, : RATE // 4]) >= 0).all()
    assert (np.diff(made[0, RATE // 2 :]) <= 0).all()


def test_fades_of_blocks_are_those_of_the_whole() -> None:
    waveform, finishing = beat(1.0), Finishing(fade_in_seconds=0.3, fade_out_seconds=0.4)
    fader = Fader(finishing, waveform.shape[1], RATE)
    blocks = [fader.feed(block) for block in np.array_split(waveform, 7, axis=1)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), finished(waveform, RATE, finishing))


def test_fades_longer_than_trimmed_audio_are_cut() -> None:
    waveform = np.concatenate((np.zeros((1, RATE)), tone(0.5, 0)), axis=1, dtype=np.float32)
    made = finished(waveform, RATE, Finishing(trim_silence=True, fade_in_seconds=1.0, fade_out_seconds=0.5))
    assert made.shape[1] == pytest.approx(RATE // 2, abs=2)
    assert made[0, 0] == made[0, -1] == 0


# --- silence


def test_silence_is_trimmed_from_the_start_and_the_end_only() -> None:
    quiet = np.full((1, RATE // 2), 0.0009, np.float32)
    loud = np.full((1, RATE), 0.0011, np.float32)
    waveform = np.concatenate((quiet, loud, quiet, loud, quiet, quiet), axis=1)
    assert silent_samples(waveform) == (RATE // 2, RATE)
    np.testing.assert_array_equal(trimmed(waveform, RATE), waveform[:, RATE // 2 : 3 * RATE])


def test_one_loud_channel_is_not_silence() -> None:
    waveform = np.stack((np.zeros(RATE, np.float32), np.ones(RATE, np.float32)))
    assert silent_samples(waveform) == (0, 0)


def test_audio_that_is_silent_throughout_is_not_trimmed() -> None:
    waveform = np.zeros((2, RATE), np.float32)
    assert silent_samples(waveform) == (RATE, RATE)
    assert trimmed(waveform, RATE) is waveform


@pytest.mark.parametrize("position", [0, RATE // 2, RATE - 1])
def test_a_single_sample_keeps_a_tenth_of_a_second(position: int) -> None:
    waveform = np.zeros((1, RATE), np.float32)
    waveform[0, position] = 1
    made = trimmed(waveform, RATE)
    assert made.shape[1] == RATE // 10
    assert made.max() == 1


# --- together


def test_the_defaults_leave_audio_as_it_is() -> None:
    waveform = beat(1.0)
    assert finished(waveform, RATE, Finishing()) is waveform


def test_the_loudness_is_that_of_the_faded_audio() -> None:
    finishing = Finishing(loudness_lufs=-16, fade_in_seconds=1, fade_out_seconds=2)
    made = finished(beat(4.0), RATE, finishing)
    assert loudness(made, RATE) == pytest.approx(-16, abs=0.2)
    assert made[0, 0] == made[0, -1] == 0
