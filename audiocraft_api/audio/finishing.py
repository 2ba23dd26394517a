"""Finishes a waveform before it is encoded: trims silence, fades, and sets the loudness. Knows no request.

Trimming comes first, so that fades begin where the audio does. Loudness comes last, so that it is that of the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocraft_api.audio.loudness import at_loudness
from audiocraft_api.core.constants import SILENCE_DBFS
from audiocraft_api.core.params import Waveform

MIN_KEPT_SECONDS = 0.1  # of audio that is trimmed


@dataclass(frozen=True)
class Finishing:
    """What happens to a waveform. The defaults leave it as it is."""

    loudness_lufs: float | None = None
    fade_in_seconds: float = 0.0
    fade_out_seconds: float = 0.0
    trim_silence: bool = False

    @property
    def has_fades(self) -> bool:
        return self.fade_in_seconds > 0 or self.fade_out_seconds > 0


def finished(waveform: Waveform, sample_rate: int, finishing: Finishing, *, timeout_seconds: float = 60.0) -> Waveform:
    """Return `waveform` [C, T] finished; the same array if nothing is to be done. Raises ConversionFailed."""
    if finishing.trim_silence:
        waveform = trimmed(waveform, sample_rate)
    waveform = Fader(finishing, waveform.shape[1], sample_rate).feed(waveform)
    if finishing.loudness_lufs is not None:
        waveform = at_loudness(waveform, sample_rate, finishing.loudness_lufs, timeout_seconds=timeout_seconds)
    return waveform


def silent_samples(waveform: Waveform) -> tuple[int, int]:
    """Return how many samples of `waveform` [C, T] at its start and its end are below `SILENCE_DBFS`.

    Of audio that is silent throughout, all samples are at its start and its end.
    """
    num_samples = waveform.shape[1]
    audible = np.flatnonzero(np.abs(waveform).max(axis=0) >= 10 ** (SILENCE_DBFS / 20))
    if not audible.size:
        return num_samples, num_samples
    return int(audible[0]), num_samples - 1 - int(audible[-1])


def trimmed(waveform: Waveform, sample_rate: int) -> Waveform:
    """Return `waveform` [C, T] without the silence around it; audio that is silent throughout stays as it is."""
    num_samples = waveform.shape[1]
    leading, trailing = silent_samples(waveform)
    if leading == num_samples:
        return waveform
    start = max(0, min(leading, num_samples - round(MIN_KEPT_SECONDS * sample_rate)))
    stop = max(num_samples - trailing, start + round(MIN_KEPT_SECONDS * sample_rate))
    return waveform[:, start:stop]


class Fader:
    """Fades audio of a known length, block by block. Each fade is half a period of a cosine."""

    def __init__(self, finishing: Finishing, num_samples: int, sample_rate: int) -> None:
        self._has_fades = finishing.has_fades
        self._num_in = min(round(finishing.fade_in_seconds * sample_rate), num_samples)
        self._num_out = min(round(finishing.fade_out_seconds * sample_rate), num_samples)
        self._num_samples = num_samples
        self._position = 0

    def feed(self, block: Waveform) -> Waveform:
        """Return the next block [C, t] with its part of the fades; the block itself if it has none."""
        start, stop = self._position, self._position + block.shape[1]
        self._position = stop
        if not self._has_fades or (start >= self._num_in and stop <= self._num_samples - self._num_out):
            return block
        samples = np.arange(start, stop)
        gains = _ramp(samples, self._num_in) * _ramp(self._num_samples - 1 - samples, self._num_out)
        return block * gains.astype(np.float32)


def _ramp(
    distance: np.ndarray[tuple[int], np.dtype[np.int64]], length: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return gains from 0 at a distance of 0 to 1 from `length` on."""
    if not length:
        return np.ones(distance.shape)
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / length, 0.0, 1.0))
