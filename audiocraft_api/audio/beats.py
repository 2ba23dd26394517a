"""Finds the beats of audio whose tempo is known roughly. Knows no request.

The beats are those of Ellis, "Beat Tracking by Dynamic Programming", Journal of New Music Research 36 (2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiocraft_api.audio.analysis import FRAME_SECONDS, HOP_SECONDS, estimate_tempo, onset_strengths

Array = npt.NDArray[np.float64]

TIGHTNESS = 400.0  # of the intervals between beats
# From the start of an onset's frame to the onset, on average: the rise is largest when the sound fills most of it.
FRAME_DELAY_SECONDS = HOP_SECONDS + 0.53 * FRAME_SECONDS
OCTAVES = (1.0, 2.0, 0.5)
MAX_MULTIPLE = 64


@dataclass(frozen=True)
class Tempo:
    """A measured tempo. Each field is None if it could not be measured."""

    estimated_bpm: float | None  # the most likely tempo
    bpm: float | None  # the exact tempo near the requested one


def tempo_near(mono: npt.NDArray[np.float32], sample_rate: int, wanted_bpm: float, tolerance: float) -> Tempo:
    """Return the tempo of `mono` [T] if it, its double or its half is within a tolerance of `wanted_bpm`.

    Double and half tempos sound alike, so that the estimate may be either. The tempo near the one wanted is measured
    from the multiples of the beat, up to half the audio, which makes it precise: 0.02 % in 10 seconds.
    """
    estimated, _ = estimate_tempo(mono, sample_rate)
    if estimated is None:
        return Tempo(None, None)
    ratio = min((estimated * octave / wanted_bpm for octave in OCTAVES), key=lambda ratio: abs(np.log(ratio)))
    if abs(ratio - 1) > 2 * tolerance:  # the estimate is right within 2 %; what follows is more precise
        return Tempo(estimated, None)
    bpm = 60 / _period_near(onset_strengths(mono, sample_rate), 60 / (wanted_bpm * ratio))
    return Tempo(estimated, bpm if abs(bpm / wanted_bpm - 1) <= tolerance else None)


def track_beats(mono: npt.NDArray[np.float32], sample_rate: int, bpm: float) -> Array:
    """Return the times of the beats of `mono` [T] in seconds, whose tempo is about `bpm`; none for silence."""
    onsets = onset_strengths(mono, sample_rate, by_octave=True)
    if np.ptp(onsets) == 0:
        return np.zeros(0)
    period = 60 / bpm / HOP_SECONDS
    width = period / 32
    reach = np.arange(-round(4 * width) - 1, round(4 * width) + 2)
    local = np.convolve(onsets / onsets.std(), np.exp(-0.5 * (reach / width) ** 2), "same")
    distances = np.arange(-round(2 * period), -round(period / 2))
    penalties = TIGHTNESS * np.log(-distances / period) ** 2
    total, before = local.copy(), np.full(len(local), -1)
    for frame in range(-int(distances[-1]), len(local)):
        earlier = frame + distances
        scores = np.where(earlier >= 0, total[np.maximum(earlier, 0)] - penalties, -penalties)
        best = int(np.argmax(scores))
        if scores[best] > 0 and earlier[best] >= 0:
            total[frame] += scores[best]
            before[frame] = earlier[best]
    last = len(local) - round(period) + int(np.argmax(total[-round(period) :]))
    frames = [last]
    while before[frames[-1]] >= 0:
        frames.append(int(before[frames[-1]]))
    beats = np.array([_peak_near(onsets, frame, width) for frame in reversed(frames)])
    return beats * HOP_SECONDS + FRAME_DELAY_SECONDS


def _peak_near(onsets: Array, frame: int, width: float) -> float:
    """Return the center of the onsets within about `width` of a frame; the frame if there are none."""
    reach = max(2, round(width))
    first = max(0, frame - reach)
    weights = onsets[first : frame + reach + 1]
    return first + float(np.average(np.arange(len(weights)), weights=weights**2)) if weights.any() else float(frame)


def _period_near(onsets: Array, seconds: float) -> float:
    """Return the period of onsets near one in seconds, from the autocorrelation at as many multiples as repeat."""
    size = len(onsets)
    spectrum = np.fft.rfft(onsets - onsets.mean(), 2 * size)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[: size // 2 + 2] / (size - np.arange(size // 2 + 2))
    correlation = np.convolve(correlation, [0.25, 0.5, 0.25], "same") / correlation[0]
    period = seconds / HOP_SECONDS
    strongest = 0.0
    for multiple in range(1, MAX_MULTIPLE):
        reach = max(2, round(0.03 * period * multiple)) if multiple <= 2 else 2
        center = round(period * multiple)
        if center + reach + 2 >= len(correlation):
            break
        first = max(1, center - reach)
        peak = first + int(np.argmax(correlation[first : center + reach + 1]))
        strongest = max(strongest, float(correlation[peak]))
        if correlation[peak] < 0.6 * strongest:  # this multiple says little
            continue
        left, middle, right = correlation[peak - 1 : peak + 2]
        bend = left - 2 * middle + right
        period = (peak + (float(0.5 * (left - right) / bend) if bend < 0 else 0.0)) / multiple
    return period * HOP_SECONDS
