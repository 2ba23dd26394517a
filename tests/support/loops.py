"""Checks that a loop, played three times, has no jump where it closes."""

from __future__ import annotations

import numpy as np

from audiocraft_api.audio.looping import LoopShape
from audiocraft_api.core.params import Waveform

REACH_SECONDS, FRAME_SECONDS, HOP_SECONDS = 0.06, 0.02, 0.005


def assert_no_jump(waveform: Waveform, sample_rate: int, shape: LoopShape) -> None:
    """Compare sample differences and spectral flux at the two seams with those elsewhere in the loop."""
    mono = waveform.mean(axis=0, dtype=np.float64)
    length = len(mono)
    played = np.tile(mono, 3)
    differences = np.abs(np.diff(played))
    flux = spectral_flux(played, sample_rate)
    reach = round(REACH_SECONDS / HOP_SECONDS)
    inside = flux[reach : round(length / sample_rate / HOP_SECONDS) - 2 * reach]
    for seam in (length, 2 * length):
        assert differences[seam - 1] <= differences[: length - 1].max()
        assert np.abs(np.diff(differences[seam - 20 : seam + 20])).max() <= np.abs(np.diff(differences)).max()
        frame = round((seam / sample_rate - FRAME_SECONDS / 2) / HOP_SECONDS)
        assert flux[frame - reach : frame + reach].max() <= 1.25 * inside.max()
    assert length == shape.num_samples(sample_rate)


def spectral_flux(mono: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return how much the levels [N - 1] of frames of 20 ms differ from those of the frame before."""
    size, hop = round(FRAME_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    frames = np.lib.stride_tricks.sliding_window_view(mono, size)[::hop]
    levels = np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)))
    return np.abs(np.diff(levels, axis=0)).mean(axis=1)
