"""Samples for players that expect one rate: the blocks of a stream join without a trace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from audiocraft_api.audio.resampled_pcm import ResampledPcm

RATE, OUTPUT_RATE = 32_000, 48_000


def resampled(waveform: npt.NDArray[np.float32], lengths: list[int]) -> npt.NDArray[np.int16]:
    """Return the samples [T, 2] of a waveform that comes in blocks."""
    encoder = ResampledPcm(len(waveform), RATE, OUTPUT_RATE)
    blocks = np.split(waveform, np.cumsum(lengths), axis=1)
    audio = b"".join([*(encoder.feed(block) for block in blocks), encoder.finish()])
    encoder.close()
    return np.frombuffer(audio, "<i2").reshape(-1, 2)


def tone(frequency: float, rate: int, num_samples: int) -> npt.NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / rate)


@pytest.mark.parametrize("lengths", [[], [640] * 20, [1, 0, 2, 15_997], [16_000, 16_000, 7]], ids=str)
def test_blocks_of_any_length_sound_like_the_whole(lengths: list[int]) -> None:
    waveform = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 40_000)).astype(np.float32)
    samples = resampled(waveform, lengths)
    assert samples.shape == (60_000, 2)
    np.testing.assert_array_equal(samples, resampled(waveform, []))


def test_a_tone_stays_a_tone() -> None:
    samples = resampled(tone(440, RATE, 32_000)[np.newaxis].astype(np.float32), [640] * 49)
    difference = samples[1000:-1000, 0] / 32768 - tone(440, OUTPUT_RATE, 48_000)[1000:-1000]
    assert np.abs(difference).max() < 1e-4


def test_mono_is_on_both_channels_and_stereo_is_kept() -> None:
    left, right = (tone(frequency, RATE, 8_000).astype(np.float32) for frequency in (440, 550))
    mono, stereo = resampled(left[np.newaxis], []), resampled(np.stack([left, right]), [])
    np.testing.assert_array_equal(mono[:, 0], mono[:, 1])
    np.testing.assert_array_equal(stereo[:, 0], mono[:, 0])
    assert not np.array_equal(stereo[:, 0], stereo[:, 1])


def test_the_audio_of_a_block_is_at_most_20_milliseconds_late() -> None:
    encoder, num_samples = ResampledPcm(1, RATE, OUTPUT_RATE), 0
    for number in range(1, 51):
        num_samples += len(encoder.feed(np.zeros((1, 640), np.float32))) // 4
        assert num_samples >= number * 960 - 0.02 * OUTPUT_RATE
