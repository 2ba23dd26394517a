"""Cuts a loop of an exact length out of audio: finds the beats and the best place to close it. Knows no request.

The end of a loop fades into the audio before its start, so that its last sample leads to its first one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from audiocraft_api.audio.analysis import FRAME_SECONDS, HOP_SECONDS, spectra
from audiocraft_api.audio.beats import Tempo, tempo_near, track_beats
from audiocraft_api.audio.stretching import at_tempo
from audiocraft_api.core.params import Waveform

Mono = npt.NDArray[np.float32]

MAX_STRETCH = 0.03
MAX_DRIFT_SECONDS = 0.005  # over the loop, below which the tempo is not changed
CROSS_FADE_SECONDS = 0.02
ATTACK_SECONDS = 0.01  # that the loop begins before a beat, so that the beat is not cut
MAX_BEAT_ERROR_SECONDS = 0.03  # of the beat where the loop ends
MIN_START_SECONDS = 0.1  # before it, an onset cannot be told from the start of the audio
MAX_SEAM = 1.0
SEAM_REACH_SECONDS = 0.05
CONTEXT_SECONDS = 0.5  # around a seam or a beat
OFF_BAR_PENALTY = 0.1


def beats_per_bar(time_signature: str | None) -> int:
    """Return the quarter notes of a bar, 4 without a time signature. A bar of 6/8 has 3, as in audio workstations."""
    return round(4 * Fraction(time_signature or "4/4"))


@dataclass(frozen=True)
class LoopShape:
    """The length of a loop. A beat is a quarter note."""

    bpm: int
    bars: int
    beats_per_bar: int

    @property
    def num_beats(self) -> int:
        return self.bars * self.beats_per_bar

    @property
    def seconds(self) -> float:
        return self.num_beats * 60 / self.bpm

    @property
    def generated_seconds(self) -> float:
        """Seconds of audio to cut from: the loop at the slowest tempo, a bar to begin in, and what the cut needs."""
        return math.ceil(50 * ((self.seconds + self.beats_per_bar * 60 / self.bpm) * (1 + MAX_STRETCH) + 0.7)) / 50

    def num_samples(self, sample_rate: int) -> int:
        """Return the length in samples, rounded once, half to even."""
        return round(Fraction(self.num_beats * 60 * sample_rate, self.bpm))


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop that was cut out of audio."""

    waveform: Waveform
    tempo_bpm: float  # of the audio, before it was changed
    stretch: float  # the factor of the tempo's change; 1 if it was left as it is
    start_seconds: float  # in the audio, after its tempo was changed
    seam: float  # the largest change of the spectrum where the loop closes; 1 is the largest at a beat of the audio


def find_loop(
    waveform: Waveform, sample_rate: int, shape: LoopShape, *, timeout_seconds: float = 60.0
) -> tuple[Loop | None, Tempo]:
    """Return the best loop of `waveform` [C, T], or None if there is none, and the tempo. Raises ConversionFailed."""
    mono = _mono(waveform)
    tempo = tempo_near(mono, sample_rate, shape.bpm, MAX_STRETCH)
    if tempo.bpm is None:
        return None, tempo
    stretch = shape.bpm / tempo.bpm
    if abs(stretch - 1) * shape.seconds <= MAX_DRIFT_SECONDS:
        stretch = 1.0
    else:
        waveform = at_tempo(waveform, sample_rate, stretch, timeout_seconds=timeout_seconds)
        mono = _mono(waveform)
    length = shape.num_samples(sample_rate)
    beats = track_beats(mono, sample_rate, shape.bpm)
    best: Loop | None = None
    best_score = math.inf
    changes = _changes(mono, sample_rate)
    for start_seconds in _starts(beats, shape, len(mono) / sample_rate):
        start = round(start_seconds * sample_rate)
        looped = closed(mono[None], start, length, sample_rate)[0]
        seam = _seam(looped, sample_rate, _largest_at_beats(changes, start_seconds, shape))
        is_at_bar = round((start_seconds + ATTACK_SECONDS) * shape.bpm / 60) % shape.beats_per_bar == 0
        score = seam + (0 if is_at_bar else OFF_BAR_PENALTY)
        if seam <= MAX_SEAM and score < best_score:
            best = Loop(closed(waveform, start, length, sample_rate), tempo.bpm, stretch, start_seconds, seam)
            best_score = score
    return best, tempo


def closed(waveform: Waveform, start: int, length: int, sample_rate: int) -> Waveform:
    """Return `length` samples from `start`, of which the last ones fade into those before `start`.

    The gains keep the power, however similar the two parts are.
    """
    fade = round(CROSS_FADE_SECONDS * sample_rate)
    looped = waveform[:, start : start + length].copy()
    ending, before = looped[:, -fade:], waveform[:, start - fade : start]
    power = float(np.sqrt((ending.astype(np.float64) ** 2).sum() * (before.astype(np.float64) ** 2).sum()))
    similarity = float((ending.astype(np.float64) * before).sum()) / power if power > 0 else 1.0
    rise = (np.arange(fade) + 0.5) / fade
    rise, fall = np.sin(0.5 * np.pi * rise), np.cos(0.5 * np.pi * rise)
    norm = np.sqrt(1 + 2 * max(similarity, 0.0) * rise * fall)
    looped[:, -fade:] = ((ending * fall + before * rise) / norm).astype(np.float32)
    return looped


def _starts(beats: npt.NDArray[np.float64], shape: LoopShape, seconds: float) -> list[float]:
    """Return the times shortly before a beat at which loops can begin that end at a beat, too."""
    found = []
    for beat in beats:
        start = float(beat) - ATTACK_SECONDS
        has_room = start >= MIN_START_SECONDS and start + shape.seconds <= seconds
        if has_room and np.abs(beats - beat - shape.seconds).min() <= MAX_BEAT_ERROR_SECONDS:
            found.append(start)
    return found


def _largest_at_beats(changes: Mono, start_seconds: float, shape: LoopShape) -> float:
    """Return the largest change at the beats of what a loop is cut from, including where it begins and ends."""
    beats = start_seconds + ATTACK_SECONDS + np.arange(shape.num_beats + 1) * 60 / shape.bpm
    return max(_largest_near(changes, float(beat)) for beat in beats)


def _seam(looped: Mono, sample_rate: int, largest_at_beats: float) -> float:
    """Return the largest change where a loop closes, as a part of the largest at the beats."""
    context = round(CONTEXT_SECONDS * sample_rate)
    around = np.concatenate((looped[-context:], looped[:context]))
    at_seam = _largest_near(_changes(around, sample_rate), CONTEXT_SECONDS + ATTACK_SECONDS)
    return at_seam / largest_at_beats if largest_at_beats > 0 else math.inf


def _largest_near(changes: Mono, seconds: float) -> float:
    """Return the largest change around a time; a frame is at its middle."""
    center, reach = round((seconds - FRAME_SECONDS / 2) / HOP_SECONDS), round(SEAM_REACH_SECONDS / HOP_SECONDS)
    return float(changes[max(0, center - reach) : center + reach + 1].max(initial=0))


def _changes(mono: Mono, sample_rate: int) -> npt.NDArray[np.float32]:
    """Return how much each frame differs from the one before, in the logarithm of its levels."""
    blocks = list(spectra(mono, round(HOP_SECONDS * sample_rate), round(FRAME_SECONDS * sample_rate)))
    levels = np.log1p(1000 * np.concatenate(blocks))
    changes: Mono = np.abs(np.diff(levels, axis=0)).mean(axis=1)
    return changes


def _mono(waveform: Waveform) -> Mono:
    mono: Mono = waveform.mean(axis=0, dtype=np.float32)
    return mono
