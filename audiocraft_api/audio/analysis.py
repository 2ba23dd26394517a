"""Measures finished audio: loudness, peaks, silence, tempo and key. Knows no request.

Functions import scipy themselves, as in `loudness.py`. Tempo and key are estimates from one spectrogram; librosa's
estimates would need an import of several seconds, and compile functions when they are first called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audiocraft_api.audio.finishing import silent_samples
from audiocraft_api.audio.loudness import loudness, true_peak
from audiocraft_api.core.params import Waveform

Array = npt.NDArray[np.float64]

FULL_SCALE = 1.0 - 2.0**-15  # the largest 16-bit sample
HOP_SECONDS, FRAME_SECONDS = 0.01, 0.032  # of the spectrogram for the tempo
SLOWEST_BPM, FASTEST_BPM, PREFERRED_BPM = 40.0, 240.0, 120.0
PREFERRED_OCTAVES = 0.9  # how far the preference reaches
MULTIPLES = np.array([1, 2, 3])
MIN_TEMPO_SECONDS = 3.0  # shorter audio has no tempo
KEY_FRAME_SECONDS = 0.25
FRAMES_PER_BLOCK = 500
LOWEST_HERTZ, HIGHEST_HERTZ = 60.0, 2000.0  # of the notes for the key
NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
# How well each pitch class fits a key on C: Temperley, "What's Key for Key?", Music Perception 17 (1999).
MAJOR = (5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0)
MINOR = (5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0)


@dataclass(frozen=True)
class Analysis:
    """What was measured. Confidences are from 0 to 1; values that audio does not have are None."""

    loudness_lufs: float | None
    true_peak_dbtp: float | None
    clipped_samples: int
    leading_silence: float  # seconds
    trailing_silence: float  # seconds
    tempo_bpm: float | None
    tempo_confidence: float | None
    key: str | None
    key_confidence: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, rounded to what is audible."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def analyze(waveform: Waveform, sample_rate: int, *, timeout_seconds: float = 60.0) -> Analysis:
    """Measure `waveform` [C, T]. Raises ConversionFailed."""
    leading, trailing = silent_samples(waveform)
    mono = waveform.mean(axis=0, dtype=np.float32)
    tempo, tempo_confidence = estimate_tempo(mono, sample_rate)
    key, key_confidence = estimate_key(mono, sample_rate)
    return Analysis(
        loudness_lufs=loudness(waveform, sample_rate, timeout_seconds=timeout_seconds),
        true_peak_dbtp=true_peak(waveform),
        clipped_samples=int(np.count_nonzero(np.abs(waveform) >= FULL_SCALE)),
        leading_silence=leading / sample_rate,
        trailing_silence=trailing / sample_rate,
        tempo_bpm=tempo,
        tempo_confidence=tempo_confidence,
        key=key,
        key_confidence=key_confidence,
    )


def estimate_tempo(mono: npt.NDArray[np.float32], sample_rate: int) -> tuple[float | None, float | None]:
    """Return the tempo of `mono` [T] in beats per minute and a confidence; None for audio without a pulse.

    The pulse is the period at whose first multiples the onsets repeat most: in many rhythms, they repeat more after
    three half beats than after one beat, but not after twice that. Among similar periods, the estimate prefers those
    near `PREFERRED_BPM`. The confidence is the highest autocorrelation at the multiples.
    """
    if len(mono) < MIN_TEMPO_SECONDS * sample_rate:
        return None, None
    onsets = onset_strengths(mono, sample_rate)
    if np.ptp(onsets) == 0:
        return None, None
    correlation = _autocorrelation(onsets)
    longest = min(math.floor(60 / SLOWEST_BPM / HOP_SECONDS) + 1, len(correlation) - 1)
    lags = np.arange(math.ceil(60 / FASTEST_BPM / HOP_SECONDS), longest)
    repeats = np.stack([_highest_near(correlation, lags * multiple) for multiple in MULTIPLES])  # [M, L]
    preference = np.exp(-0.5 * (np.log2(60 / (lags * HOP_SECONDS) / PREFERRED_BPM) / PREFERRED_OCTAVES) ** 2)
    best = int(np.argmax((repeats / np.sqrt(MULTIPLES)[:, None]).sum(axis=0) * preference))
    confidence = float(np.clip(repeats[:, best].max(), 0.0, 1.0))
    return float(60 / (_refined(correlation, int(lags[best])) * HOP_SECONDS)), confidence


def estimate_key(mono: npt.NDArray[np.float32], sample_rate: int) -> tuple[str | None, float | None]:
    """Return the key of `mono` [T] and a confidence; None for audio without notes.

    The key is the one whose profile correlates best with the energy of the pitch classes. The confidence is that
    correlation.
    """
    chroma = _pitch_classes(mono, sample_rate)
    if chroma is None:
        return None, None
    profiles = np.array([np.roll(profile, tonic) for profile in (MAJOR, MINOR) for tonic in range(12)])
    scores = np.array([np.corrcoef(chroma, profile)[0, 1] for profile in profiles])
    best = int(np.argmax(scores))
    return f"{NOTES[best % 12]} {('major', 'minor')[best // 12]}", float(np.clip(scores[best], 0.0, 1.0))


def onset_strengths(mono: npt.NDArray[np.float32], sample_rate: int, *, by_octave: bool = False) -> Array:
    """Return how much louder each frame [N] is than the one before, over all frequencies (spectral flux).

    `by_octave` gives each octave the same weight, so that a bass drum counts more than a cymbal.
    """
    rises, last = [], np.zeros((0, 0), np.float32)
    num_bins = round(FRAME_SECONDS * sample_rate) // 2 + 1
    weights = 1 / np.arange(1, num_bins + 1) if by_octave else None
    for magnitudes in spectra(mono, round(HOP_SECONDS * sample_rate), round(FRAME_SECONDS * sample_rate)):
        levels = np.log1p(1000 * magnitudes)
        levels = np.concatenate((last, levels)) if last.size else levels
        rise = np.maximum(np.diff(levels, axis=0), 0)
        rises.append(rise.mean(axis=1, dtype=np.float64) if weights is None else np.average(rise, 1, weights))
        last = levels[-1:]
    flux = np.concatenate(rises)
    window = np.ones(round(0.4 / HOP_SECONDS))
    local = np.convolve(flux, window / len(window), "same")  # without it, loud parts would decide the tempo
    onsets: Array = np.maximum(flux - local, 0)
    return onsets


def _autocorrelation(onsets: Array) -> Array:
    """Return the autocorrelation of onsets [N] up to four of the slowest beats, 1 at 0."""
    size = len(onsets)
    num_lags = min(size // 2, round(4 * 60 / SLOWEST_BPM / HOP_SECONDS))
    centered = onsets - onsets.mean()
    spectrum = np.fft.rfft(centered, 2 * size)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:num_lags]
    correlation /= size - np.arange(num_lags)  # without a bias to short lags
    smoothed: Array = np.convolve(correlation, [0.25, 0.5, 0.25], "same") / correlation[0]
    return smoothed


def _highest_near(correlation: Array, lags: npt.NDArray[np.int64]) -> Array:
    """Return the highest autocorrelation within one frame of each lag; 0 beyond the end."""
    padded = np.pad(correlation, (0, max(0, int(lags.max()) + 2 - len(correlation))))
    highest: Array = np.max([padded[lags + offset] for offset in (-1, 0, 1)], axis=0)
    return highest


def _refined(correlation: Array, lag: int) -> float:
    """Return the period near `lag`, in frames, from the peak at the highest multiple that is in sight.

    A frame is up to 4 % of a fast beat, but 1 % of four of them.
    """
    period = float(lag)
    for multiple in range(1, 5):
        center = round(period * multiple)
        if center + 2 >= len(correlation):
            break
        first = max(1, center - 2)
        peak = first + int(np.argmax(correlation[first : center + 3]))
        if correlation[peak] < 0.5 * correlation[lag] or peak + 1 >= len(correlation):
            break
        left, middle, right = correlation[peak - 1 : peak + 2]
        bend = left - 2 * middle + right
        period = (peak + (0.5 * (left - right) / bend if bend < 0 else 0.0)) / multiple
    return period


def _pitch_classes(mono: npt.NDArray[np.float32], sample_rate: int) -> Array | None:
    """Return the energy of the pitch classes [12], from C; None if there is none.

    Each spectral peak counts for its nearest note, so that neither noise nor a broad peak counts for several.
    """
    length = round(KEY_FRAME_SECONDS * sample_rate)
    hertz = np.fft.rfftfreq(length, 1 / sample_rate)
    inside = np.flatnonzero((hertz >= LOWEST_HERTZ) & (hertz <= HIGHEST_HERTZ))
    classes = np.round(12 * np.log2(hertz[inside] / 440) + 9).astype(int) % 12
    found = np.zeros(12)
    for magnitudes in spectra(mono, length // 2, length):
        middle = magnitudes[:, inside]
        is_peak = (middle > magnitudes[:, inside - 1]) & (middle >= magnitudes[:, inside + 1])
        is_peak &= middle > np.maximum(0.05 * magnitudes.max(axis=1, keepdims=True), 1e-4)
        found += np.bincount(classes, np.where(is_peak, np.sqrt(middle), 0).sum(axis=0, dtype=np.float64), 12)
    return found if np.ptp(found) > 0 else None


def spectra(mono: npt.NDArray[np.float32], hop: int, length: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the magnitudes [n, length // 2 + 1] of overlapping frames, in blocks that bound the memory."""
    if len(mono) < length:
        return
    frames = np.lib.stride_tricks.sliding_window_view(mono, length)[::hop]
    window = np.hanning(length).astype(np.float32) * np.float32(2 / length)
    for block in np.array_split(frames, math.ceil(len(frames) / FRAMES_PER_BLOCK)):
        yield np.abs(np.fft.rfft(block * window)).astype(np.float32)
