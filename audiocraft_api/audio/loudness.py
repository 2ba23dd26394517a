"""Measures loudness (EBU R 128) and true peak (ITU-R BS.1770-5), and limits the true peak. Knows no request.

Functions import scipy themselves: that takes two seconds, which most servers need not spend before they listen.
"""

from __future__ import annotations

import logging
import math
import re
import subprocess
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from audiocraft_api.audio.convert import ffmpeg_executable
from audiocraft_api.core.constants import MAX_TRUE_PEAK_DBTP
from audiocraft_api.core.errors import ConversionFailed
from audiocraft_api.core.params import Waveform

SILENCE_LUFS = -70.0  # the absolute gate: quieter audio has no loudness
OVERSAMPLING = 4
BLOCK_SECONDS, MARGIN_SAMPLES = 5, 64  # audio is oversampled block by block, with a margin for the filter
LOOK_AHEAD_SECONDS = 0.01
MAX_LIMITING_DB = 12.0  # what the limiter may take from a peak
TOLERANCE_LU = 0.1
MAX_ROUNDS = 5

logger = logging.getLogger(__name__)


def loudness(waveform: Waveform, sample_rate: int, *, timeout_seconds: float = 60.0) -> float | None:
    """Return the integrated loudness of `waveform` [C, T] in LUFS; None for silence and for less than 0.4 seconds.

    Raises ConversionFailed.
    """
    found = re.findall(rb"r128\.I=(-?[0-9.]+)", _run_ebur128(waveform, sample_rate, timeout_seconds))
    value = float(found[-1]) if found else SILENCE_LUFS
    return value if value > SILENCE_LUFS else None


def true_peaks(waveform: Waveform) -> npt.NDArray[np.float32]:
    """Return the highest level of all channels in each sample period [T], measured with fourfold oversampling.

    Not in one piece: oversampled, 5 minutes of stereo would take 300 MB.
    """
    from scipy import signal  # type: ignore[import-untyped]

    num_samples = waveform.shape[1]
    peaks = np.empty(num_samples, np.float32)
    for start, stop in _blocks(num_samples):
        first, last = max(0, start - MARGIN_SAMPLES), min(num_samples, stop + MARGIN_SAMPLES)
        oversampled = signal.resample_poly(waveform[:, first:last], OVERSAMPLING, 1, axis=1)  # [C, 4 t]
        levels = np.abs(oversampled).max(axis=0).reshape(-1, OVERSAMPLING).max(axis=1)
        peaks[start:stop] = levels[start - first : stop - first]
    # The filter may miss the samples themselves by a little.
    np.maximum(peaks, np.abs(waveform).max(axis=0), out=peaks)
    return peaks


def true_peak(waveform: Waveform) -> float | None:
    """Return the true peak of `waveform` [C, T] in dBTP; None for digital silence."""
    return _decibels(float(true_peaks(waveform).max()))


def at_loudness(waveform: Waveform, sample_rate: int, target_lufs: float, *, timeout_seconds: float = 60.0) -> Waveform:
    """Return `waveform` [C, T] at an integrated loudness, with a true peak of at most `MAX_TRUE_PEAK_DBTP`.

    The gain is linear unless a peak would be too high. Then a limiter lowers the peaks, by `MAX_LIMITING_DB` at most:
    audio with higher peaks stays below the target. Silence stays as it is. Raises ConversionFailed.
    """
    measured = loudness(waveform, sample_rate, timeout_seconds=timeout_seconds)
    if measured is None:
        return waveform
    peaks = true_peaks(waveform)
    headroom = MAX_TRUE_PEAK_DBTP - 20 * math.log10(float(peaks.max()))
    gain = target_lufs - measured
    if gain <= headroom:
        return waveform * np.float32(_factor(gain))
    limited = waveform
    for _ in range(MAX_ROUNDS):
        gain = min(gain, headroom + MAX_LIMITING_DB)
        limited = _limited(waveform, peaks, _factor(gain), sample_rate)
        measured = loudness(limited, sample_rate, timeout_seconds=timeout_seconds) or SILENCE_LUFS
        missing = target_lufs - measured
        if abs(missing) <= TOLERANCE_LU or (missing > 0 and gain == headroom + MAX_LIMITING_DB):
            break
        gain += missing
    return limited


def _limited(waveform: Waveform, peaks: npt.NDArray[np.float32], factor: float, sample_rate: int) -> Waveform:
    """Return `waveform` times `factor`, with lower gain around peaks that would exceed the maximum.

    A minimum over the look-ahead, smoothed over the same time, is never above what a peak needs.
    """
    from scipy import ndimage

    ceiling = np.float32(_factor(MAX_TRUE_PEAK_DBTP))
    gains = np.minimum(np.float32(factor), ceiling / np.maximum(peaks, np.float32(1e-9)))  # [T]
    half = max(1, round(LOOK_AHEAD_SECONDS * sample_rate) // 2)
    gains = ndimage.minimum_filter1d(gains, 4 * half + 1, mode="nearest")
    for _ in range(2):  # two averages of 2 * half + 1 samples reach as far as the minimum
        gains = ndimage.uniform_filter1d(gains, 2 * half + 1, mode="nearest")
    limited: Waveform = waveform * gains
    # A gain that changes between samples moves the peaks between them, by less than 0.1 dB.
    excess = float(true_peaks(limited).max()) / float(ceiling)
    return limited / np.float32(excess) if excess > 1 else limited


def _blocks(num_samples: int) -> Iterator[tuple[int, int]]:
    length = BLOCK_SECONDS * 48_000
    return ((start, min(start + length, num_samples)) for start in range(0, num_samples, length))


def _factor(decibels: float) -> float:
    return float(10 ** (decibels / 20))


def _decibels(level: float) -> float | None:
    return 20 * math.log10(level) if level > 0 else None


def _run_ebur128(waveform: Waveform, sample_rate: int, timeout_seconds: float) -> bytes:
    """Return the values that ffmpeg's filter measures, one line for each tenth of a second."""
    command = [
        *(ffmpeg_executable(), "-nostdin", "-hide_banner", "-loglevel", "error", "-f", "f32le"),
        *("-ar", str(sample_rate), "-ac", str(waveform.shape[0]), "-i", "pipe:0"),
        *("-af", "ebur128=metadata=1,ametadata=print:key=lavfi.r128.I:file=-", "-f", "null", "-"),
    ]
    samples = np.ascontiguousarray(waveform.T, np.float32).tobytes()
    try:
        return subprocess.run(command, input=samples, capture_output=True, timeout=timeout_seconds, check=True).stdout
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        cause = getattr(error, "stderr", None) or error
        logger.error("Measuring the loudness of a waveform of shape %s failed: %s", waveform.shape, cause)
        raise ConversionFailed("The loudness of the audio could not be measured.") from error
