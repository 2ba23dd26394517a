"""Measurements of synthesized audio whose tempo, key, loudness and silence are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from audiocraft_api.audio.analysis import NOTES, analyze, estimate_key, estimate_tempo

Mono = npt.NDArray[np.float32]

RATE = 32_000
MAJOR, MINOR = (0, 4, 7), (0, 3, 7)
CADENCES = {  # roots above the tonic, with their chords
    "major": (
        ((0, MAJOR), (5, MAJOR), (7, MAJOR), (0, MAJOR)),
        ((0, MAJOR), (9, MINOR), (5, MAJOR), (7, MAJOR), (0, MAJOR)),
    ),
    "minor": (
        ((0, MINOR), (5, MINOR), (7, MAJOR), (0, MINOR)),
        ((0, MINOR), (8, MAJOR), (7, MAJOR), (0, MINOR)),
    ),
}


def beat(bpm: float, seconds: float, kind: str, seed: int = 0) -> Mono:
    """Return hits on each beat, the first of four louder, over quiet noise."""
    rng = np.random.default_rng(seed)
    samples = 0.003 * rng.standard_normal(round(seconds * RATE))
    for number in range(int(seconds * bpm / 60)):
        place = samples[round(number * 60 / bpm * RATE) :][:6000]
        time = np.arange(len(place)) / RATE
        loud = 0.5 if number % 4 == 0 else 0.35
        if kind == "click":
            place += loud * np.exp(-60 * time) * rng.standard_normal(len(place))
        else:
            place += loud * np.exp(-20 * time) * np.sin(2 * np.pi * (60 + 100 * np.exp(-50 * time)) * time)
        if kind == "kick and hat":
            hat = samples[round((number + 0.5) * 60 / bpm * RATE) :][:3000]
            hat += 0.1 * np.exp(-100 * np.arange(len(hat)) / RATE) * rng.standard_normal(len(hat))
    return samples.astype(np.float32)


def chords(tonic: int, cadence: tuple[tuple[int, tuple[int, ...]], ...], seed: int = 0) -> Mono:
    """Return a cadence of chords over bass notes, half a second each, of notes with five harmonics."""
    rng, time = np.random.default_rng(seed), np.arange(RATE // 2) / RATE
    parts = []
    for root, chord in cadence:
        notes = [48 + (tonic + root) % 12 + step for step in chord] + [36 + (tonic + root) % 12]
        hertz = [440 * 2 ** ((note - 69) / 12) * harmonic for note in notes for harmonic in range(1, 6)]
        levels = [0.03 / harmonic**1.5 for _ in notes for harmonic in range(1, 6)]
        waves = (
            level * np.sin(2 * np.pi * frequency * time + rng.uniform(0, 6))
            for level, frequency in zip(levels, hertz, strict=True)
        )
        parts.append(np.exp(-1.5 * time) * sum(waves))
    return np.concatenate(parts).astype(np.float32)


# --- tempo


@pytest.mark.parametrize("kind", ["click", "kick", "kick and hat"])
@pytest.mark.parametrize("bpm", [70, 87.5, 100, 117, 128, 140, 165])
def test_the_tempo_of_a_beat_is_found(bpm: float, kind: str) -> None:
    tempo, confidence = estimate_tempo(beat(bpm, 8, kind), RATE)
    assert tempo == pytest.approx(bpm, rel=0.02)
    assert confidence is not None
    assert 0.3 < confidence <= 1


@pytest.mark.parametrize("bpm", [48, 190, 230])
def test_a_very_slow_or_fast_tempo_is_found_up_to_a_factor_of_two(bpm: float) -> None:
    tempo, _ = estimate_tempo(beat(bpm, 10, "kick"), RATE)
    assert tempo is not None
    assert min(abs(tempo * factor / bpm - 1) for factor in (0.5, 1, 2)) < 0.02


def test_noise_has_less_confidence_than_a_beat() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    _, confidence = estimate_tempo(noise, RATE)
    assert confidence is not None
    assert confidence < 0.3


def test_short_audio_and_silence_have_no_tempo() -> None:
    assert estimate_tempo(beat(120, 2.9, "kick"), RATE) == (None, None)
    assert estimate_tempo(np.zeros(5 * RATE, np.float32), RATE) == (None, None)


@pytest.mark.parametrize("position", [0.0, 1.0, 2.5])
def test_a_single_hit_is_no_error(position: float) -> None:
    mono = np.zeros(3 * RATE, np.float32)
    mono[round(position * RATE) :][:1000] = 0.5
    tempo, _ = estimate_tempo(mono, RATE)
    assert tempo is None or np.isfinite(tempo)


# --- key


def test_keys_of_cadences_are_found() -> None:
    wrong = []
    for tonic in range(12):
        for mode, cadences in CADENCES.items():
            for number, cadence in enumerate(cadences):
                key, _ = estimate_key(chords(tonic, cadence, number), RATE)
                if key != f"{NOTES[tonic]} {mode}":
                    wrong.append((NOTES[tonic], mode, number, key))
    assert len(wrong) <= 4, wrong  # of 48: at least 90 % are right


def test_keys_have_the_names_that_requests_accept() -> None:
    from audiocraft_api.web.schemas.field_types import KEY

    assert all(KEY.fullmatch(f"{note} {mode}") for note in NOTES for mode in CADENCES)


def test_audio_without_notes_has_no_key() -> None:
    assert estimate_key(np.zeros(RATE, np.float32), RATE) == (None, None)
    assert estimate_key(np.ones(100, np.float32), RATE) == (None, None)


# --- all of it


def test_an_analysis_has_what_was_measured() -> None:
    time = np.arange(4 * RATE) / RATE
    sine = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * time)
    found = analyze(np.stack((sine, sine)).astype(np.float32), RATE)
    assert found.loudness_lufs == pytest.approx(-23, abs=0.2)
    assert found.true_peak_dbtp == pytest.approx(-23, abs=0.2)
    assert found.clipped_samples == 0


def test_clipping_and_silence_are_counted() -> None:
    waveform = np.zeros((2, 4 * RATE), np.float32)
    waveform[:, RATE : 2 * RATE] = 0.5
    waveform[0, RATE : RATE + 10] = 1.0
    waveform[1, RATE] = -1.2
    found = analyze(waveform, RATE).to_dict()
    assert found["clipped_samples"] == 11
    assert (found["leading_silence"], found["trailing_silence"]) == (1.0, 2.0)


def test_silence_has_no_loudness_no_peak_no_tempo_and_no_key() -> None:
    found = analyze(np.zeros((1, 4 * RATE), np.float32), RATE).to_dict()
    assert {name for name, value in found.items() if value is None} == {
        *("loudness_lufs", "true_peak_dbtp", "tempo_bpm", "tempo_confidence", "key", "key_confidence"),
    }
    assert found["leading_silence"] == found["trailing_silence"] == 4.0
