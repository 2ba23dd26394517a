"""Synthesized music with beats at known times."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RATE = 32_000


def rhythm(bpm: float, seconds: float, *, seed: int = 0, first_beat: float = 0.3) -> npt.NDArray[np.float32]:
    """Return mono samples [T]: drums on the beats, softer ones between them, and a note on each beat."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 1e-4, round(seconds * RATE))
    drum = rng.normal(0, 0.3, RATE // 10) * np.exp(-np.arange(RATE // 10) / (0.02 * RATE))
    period = 60 / bpm
    times = np.arange(RATE * period * 0.9) / RATE
    envelope = 0.15 * np.exp(-3 * times) * (1 - np.exp(-200 * times))
    for number, beat in enumerate(np.arange(first_beat, seconds, period)):
        _add(samples, beat, drum * (0.6 if number % 2 else 1.0))
        _add(samples, beat + period / 2, 0.3 * drum)
        _add(samples, beat, envelope * np.sin(2 * np.pi * (220, 262, 330, 262)[number % 4] * times))
    return samples.astype(np.float32)


def beats_of(bpm: float, seconds: float, first_beat: float = 0.3) -> npt.NDArray[np.float64]:
    """Return the times of the beats in `rhythm`."""
    return np.arange(first_beat, seconds, 60 / bpm)


def _add(samples: npt.NDArray[np.float64], start_seconds: float, sound: npt.NDArray[np.float64]) -> None:
    start = round(start_seconds * RATE)
    part = sound[: max(0, len(samples) - start)]
    samples[start : start + len(part)] += part
