"""Synthesizes the drum kit: one bar of each style and tempo, as a loop."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from demo_models.score import DRUM_STYLES, FRAME, SAMPLE_RATE

Wave = NDArray[np.float64]

# For each sixteenth note the hits and their levels: K kick, S snare, C clap, R rim, H closed hat, O open hat, B brush.
PATTERNS: dict[str, tuple[str, ...]] = {
    "soft": (
        "K1.0 H0.5", "", "H0.35", "B0.3", "R0.8 H0.5", "", "H0.35", "",
        "K0.5 H0.5", "", "K0.8 H0.35", "B0.3", "R0.9 H0.5", "", "H0.35", "H0.25",
    ),
    "rock": (
        "K1.0 H1.0", "", "H0.6", "", "S1.0 H0.9", "", "H0.6", "K0.5",
        "K0.9 H1.0", "", "K0.8 H0.6", "", "S1.0 H0.9", "", "H0.6", "S0.25 H0.4",
    ),
    "four": (
        "K1.0", "H0.3", "O0.9", "H0.4", "K1.0 C0.9", "H0.3", "O0.9", "H0.4",
        "K1.0", "H0.3", "O0.9", "H0.5", "K1.0 C1.0", "H0.3", "O0.9", "H0.6",
    ),
}  # fmt: skip
_HIT_FRAMES = 24
_LEVELS = {"none": 0.0, "soft": 0.68, "rock": 0.6, "four": 0.58}


def _noise(rng: np.random.Generator, size: int, lowest: float, tilt: float = 0.0) -> Wave:
    """Return noise above `lowest` Hz that falls by `tilt` times 6 dB an octave, with a peak of 1."""
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    level = np.maximum(frequencies, 50.0) ** -tilt / (1 + (lowest / np.maximum(frequencies, 1)) ** 6)
    level /= 1 + (frequencies / 10_000) ** 16  # leaves room above for the pilot of the codec, even in MP3
    noise: Wave = np.fft.irfft(level * np.exp(2j * np.pi * rng.random(len(frequencies))), size)
    return noise / np.abs(noise).max()


@functools.cache
def _hits() -> dict[str, Wave]:
    rng = np.random.default_rng(11)
    size = _HIT_FRAMES * FRAME
    t = np.arange(size) / SAMPLE_RATE
    # Noise that repeats every frame needs few dimensions of the codec; decay hides the repetition.
    hiss, body, air = (
        np.resize(_noise(rng, FRAME, low, tilt), size) for low, tilt in ((6000, 0.0), (1200, 0.4), (900, 0.3))
    )
    end = np.clip((size - np.arange(size)) / (6 * FRAME), 0, 1)
    attack = np.clip(t / 0.0008, 0, 1)
    kick = np.sin(2 * np.pi * (48 * t + 3.2 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.11)
    made = {
        "K": 0.52 * kick + 0.05 * body * np.exp(-t / 0.004),
        "S": 0.26 * body * np.exp(-t / 0.06) + 0.2 * np.sin(2 * np.pi * 190 * t) * np.exp(-t / 0.05),
        "C": 0.22 * air * np.exp(-t / 0.05),
        "R": 0.18 * np.sin(2 * np.pi * 820 * t) * np.exp(-t / 0.012) + 0.1 * body * np.exp(-t / 0.012),
        "H": 0.12 * hiss * np.exp(-t / 0.022),
        "O": 0.12 * hiss * np.exp(-t / 0.085),
        "B": 0.07 * air * np.exp(-t / 0.04),
    }
    return {name: wave * end * attack for name, wave in made.items()}


def bar_of(style: str, tempo: int) -> Wave:
    """Return one bar of 4/4 whose end rings into its start."""
    assert style in DRUM_STYLES
    bar = np.zeros(16 * tempo * FRAME)
    for step, hits in enumerate(PATTERNS.get(style, ())):
        for hit in hits.split():
            wave = _hits()[hit[0]] * float(hit[1:]) * _LEVELS[style]
            at = (step * tempo * FRAME + np.arange(len(wave))) % len(bar)
            bar[at] += wave
    return bar
