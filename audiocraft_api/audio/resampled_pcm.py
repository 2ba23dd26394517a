"""Resamples a stream to samples for players that expect one rate and two channels, without a gap between blocks."""

from __future__ import annotations

import numpy as np
import soxr

from audiocraft_api.audio.convert import pcm16
from audiocraft_api.core.params import Waveform

NUM_CHANNELS = 2


class ResampledPcm:
    """A `StreamEncoder` for 16-bit samples, little-endian, interleaved, in stereo; mono is on both channels.

    The resampler looks ahead, so the last 20 ms of a block are returned with the next block. The joined output equals
    that of the whole waveform.
    """

    def __init__(self, num_channels: int, sample_rate: int, output_rate: int) -> None:
        self._num_channels = num_channels
        self._resampler = soxr.ResampleStream(sample_rate, output_rate, num_channels, dtype="float32")

    def feed(self, block: Waveform) -> bytes:
        return self._resample(block, is_last=False)

    def finish(self) -> bytes:
        return self._resample(np.zeros((self._num_channels, 0), np.float32), is_last=True)

    def close(self) -> None: ...

    def _resample(self, block: Waveform, *, is_last: bool) -> bytes:
        samples = np.ascontiguousarray(block.T, dtype=np.float32)  # [t, C]
        resampled = self._resampler.resample_chunk(samples, last=is_last).reshape(-1, self._num_channels)
        stereo = np.broadcast_to(resampled.T, (NUM_CHANNELS, len(resampled)))
        return pcm16(stereo).astype("<i2", copy=False).tobytes()
