"""Measures sound, without the codes: loudness, clicks, tempo, mode."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo_models.harmony import SCALES
from demo_models.score import FRAME, SAMPLE_RATE

Wave = NDArray[Any]  # [T]


def loudness(wave: Wave) -> float:
    """Return the loudness in LUFS (ITU-R BS.1770) of a waveform [T] or [C, T]; channels add up."""
    import torch
    from torchaudio import functional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(functional.loudness(torch.tensor(np.atleast_2d(wave).astype(np.float32)), SAMPLE_RATE))


def signal_to_noise(expected: Wave, found: Wave) -> float:
    """Return the level in dB of a waveform over its difference from another."""
    error = np.square(expected.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / error))


def edge_roughness(wave: Wave) -> float:
    """Return the largest fourth difference at frame edges over that inside frames, for the worst 1 % of frames.

    A click is a jump; where frames join, jumps would make this much greater than 1.
    """
    rough = np.abs(np.diff(wave.astype(np.float64), 4, append=np.zeros(4)))
    frames = rough[: len(rough) // FRAME * FRAME].reshape(-1, FRAME)
    edges = np.concatenate([frames[:, :4], frames[:, -4:]], 1).max(1)
    inside = frames[:, FRAME // 4 : -FRAME // 4].max(1)
    return float(np.quantile(edges, 0.99) / np.quantile(inside, 0.99))


def broadband_peak(wave: Wave, low: float = 10_000, high: float = 14_000) -> float:
    """Return the highest level in dB of 2 ms in a band above all tones.

    Without drums nothing sounds there, but a click would: it has all frequencies.
    """
    spectrum = np.fft.rfft(wave.astype(np.float64))
    frequencies = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    band = np.fft.irfft(spectrum, len(wave))
    blocks = band[: len(band) // 64 * 64].reshape(-1, 64)
    return float(10 * np.log10(np.square(blocks).mean(1).max() + 1e-20))


def correlation(wave: Wave) -> float:
    """Return the correlation of the two sides of a waveform [2, T]: 1 is mono."""
    return float(np.corrcoef(wave)[0, 1])


def level_in_mono(wave: Wave) -> float:
    """Return in dB how much quieter the mean of both sides is than the sides: 0 is mono, -3 uncorrelated."""
    return float(10 * np.log10(np.square(wave.mean(0)).mean() / np.square(wave).mean()))


def tempo(wave: Wave) -> float:
    """Return the tempo in beats per minute."""
    import librosa

    envelope = librosa.onset.onset_strength(y=wave, sr=SAMPLE_RATE, hop_length=320)
    found = librosa.feature.tempo(onset_envelope=envelope, sr=SAMPLE_RATE, hop_length=320)
    return float(found[0])


def chroma(wave: Wave, hop: int = FRAME * 4) -> NDArray[np.float64]:
    """Return the energy [T, 12] of each pitch class, from C, normalized for each frame."""
    import librosa

    harmonic = librosa.effects.harmonic(wave.astype(np.float32), margin=2.0)
    found = librosa.feature.chroma_cqt(y=harmonic, sr=SAMPLE_RATE, hop_length=hop, fmin=librosa.note_to_hz("C2"))
    return np.asarray(found.T, np.float64)


def mode(wave: Wave) -> str:
    """Return "major" or "minor": the key profile that fits the chroma best (Temperley's profiles).

    A major key and its relative minor have the same notes. The first second tells them apart: there the tonic sounds.
    """
    profiles = {
        "major": (5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0),
        "minor": (5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0),
    }
    found = chroma(wave)
    first = found[: SAMPLE_RATE // (FRAME * 4)].mean(0)
    mean = found.mean(0) / found.mean(0).max() + 1.5 * first / first.max()
    scores = {
        name: max(float(np.corrcoef(np.roll(profile, tonic), mean)[0, 1]) for tonic in range(12))
        for name, profile in profiles.items()
    }
    assert set(profiles) == set(SCALES)
    return max(scores, key=lambda name: scores[name])
