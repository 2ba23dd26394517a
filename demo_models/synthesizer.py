"""Synthesizes the waveform grain of every code, and renders codes by adding the grains up.

A grain is 20 ms long, and 2.5 ms more on either side, where it cross-fades with its neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo_models import drums
from demo_models.composer import Codes
from demo_models.score import (
    BASS_PITCHES,
    BASS_SOUNDS,
    CHORD_SOUNDS,
    CHORDS,
    DRUM_STYLES,
    FRAME,
    FRAME_RATE,
    LEAD_PITCHES,
    LEAD_SOUNDS,
    NUM_CODES,
    PARTS,
    SAMPLE_RATE,
    TEMPOS,
    Sound,
    chord_pitches,
    hertz,
    loop_of,
)

Wave = NDArray[np.float64]
Grains = NDArray[np.float32]  # [4, NUM_CODES, GRAIN]

EDGE = 80  # samples: half a cross-fade
GRAIN = FRAME + 2 * EDGE
_HIGHEST = 9_000  # Hz
_VOLUME = 1.06  # mono clips then have -20 to -14 LUFS
_ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(2 * EDGE) + 0.5) / (2 * EDGE))
WINDOW = np.concatenate([_ramp, np.ones(FRAME - 2 * EDGE), _ramp[::-1]])


@dataclass(frozen=True)
class Timbre:
    """The spectrum of a sound. Partial `h` has the level `levels[h - 1]`, lowered above `brightness` Hz.

    `decay` is the time constant of the first partial in seconds and `damping` how much faster each next one decays;
    neither concerns sustained sounds. `ratios` are the partials' frequencies, multiples of the first.
    """

    gain: float
    levels: Sequence[float]
    brightness: float
    attack: float = 0.003  # seconds
    decay: float = 0.4
    damping: float = 0.5
    strum: float = 0.0  # seconds from one string to the next
    chorus: float = 0.0  # level of side tones, one step of the loop's grid away
    tremolo: float = 0.0
    ratios: Sequence[float] | None = None


def _saw(count: int, slope: float) -> list[float]:
    return [h**-slope for h in range(1, count + 1)]


TIMBRES = {
    ("chords", "keys"): Timbre(0.138, _saw(4, 1.9), 2500, 0.006, 0.6, 0.8),
    ("chords", "guitar"): Timbre(0.144, _saw(7, 1.1), 2200, 0.002, 0.34, 0.5, strum=0.012),
    ("chords", "pad"): Timbre(0.0725, (1, 0.55, 0.35, 0.22, 0.12, 0.08), 1500, chorus=0.5),
    ("chords", "organ"): Timbre(0.061, (1, 0.6, 0.4, 0.3, 0.0, 0.15, 0.0, 0.12), 3000, chorus=0.12),
    ("bass", "finger"): Timbre(0.17, _saw(6, 1.1), 500, 0.004, 0.5, 0.5),
    ("bass", "synth"): Timbre(0.118, (1, 0.6, 0.4, 0.3, 0.2, 0.12), 500),
    ("lead", "piano"): Timbre(
        0.25, _saw(8, 1.3), 2800, 0.002, 0.4, 0.45, ratios=[h * (1 + 3e-4 * h * h) ** 0.5 for h in range(1, 9)]
    ),
    ("lead", "bells"): Timbre(0.24, (1, 0.5, 0.3, 0.16), 6000, 0.001, 0.38, 0.7, ratios=(1, 2.0, 4.02, 6.8)),
    ("lead", "marimba"): Timbre(0.43, (1, 0.35, 0.1), 5000, 0.001, 0.09, 1.5, ratios=(1, 3.98, 9.2)),
    ("lead", "flute"): Timbre(0.15, (1, 0.3, 0.12, 0.04), 6000, tremolo=0.12),
    ("lead", "violin"): Timbre(0.14, _saw(10, 0.9), 2200, chorus=0.35),
    ("lead", "synth"): Timbre(0.13, _saw(10, 1.0), 2400, chorus=0.25),
}


def _decaying(timbre: Timbre, frequencies: Sequence[float], t: Wave, end: float) -> Wave:
    """Return a plucked or struck note that is silent before 0 and after `end` seconds."""
    wave = np.zeros_like(t)
    ratios = timbre.ratios or range(1, len(timbre.levels) + 1)
    for string, frequency in enumerate(frequencies):
        late = t - string * timbre.strum
        for h, (ratio, level) in enumerate(zip(ratios, timbre.levels, strict=True)):
            f = frequency * ratio
            if f < _HIGHEST:
                fall = np.exp(-np.maximum(late, 0) * (1 + timbre.damping * h) / timbre.decay - f / timbre.brightness)
                wave += level * np.sin(2 * np.pi * f * late) * fall * np.clip(late / timbre.attack, 0, 1) ** 1.5
    fade = np.clip((end - t) / min(0.2, 0.5 * end), 0, 1)
    return timbre.gain * wave * fade


def _sustained(timbre: Timbre, frequencies: Sequence[float], t: Wave, attack: float, grid: float) -> Wave:
    """Return a note that repeats exactly every 1 / `grid` seconds after its attack."""
    wave = np.zeros_like(t)
    for string, frequency in enumerate(frequencies):
        for h, level in enumerate(timbre.levels, 1):
            f = frequency * h
            if f >= _HIGHEST or not level:
                continue
            level *= np.exp(-f / timbre.brightness)
            phase = 2.4 * string + 1.7 * h * h
            wave += level * np.sin(2 * np.pi * f * t + phase)
            for side in (-1, 1) if timbre.chorus else ():
                shifted = 2 * np.pi * (f + side * grid) * t + phase * (2 + side)
                wave += timbre.chorus * level * np.sin(shifted)
    wave *= 1 + timbre.tremolo * np.sin(2 * np.pi * grid * t)
    rise = np.clip(t / (attack - EDGE / SAMPLE_RATE), 0, 1)
    return timbre.gain * wave * np.sin(0.5 * np.pi * rise) ** 2


def _note(timbre: Timbre, sound: Sound, pitches: tuple[int, ...]) -> tuple[Wave, Wave]:
    """Return the grains of a note, attack and loop, and those of its release."""
    if sound.loops is None:
        t = (np.arange(sound.attack * FRAME + 2 * EDGE) - 2 * EDGE) / SAMPLE_RATE
        wave = _decaying(timbre, [hertz(p) for p in pitches], t, t[-1])
        return _cut(wave, sound.attack), np.zeros((0, GRAIN))
    length, frequencies = loop_of(pitches, sound.loops)
    frames = sound.attack + length
    t = (np.arange(frames * FRAME + 2 * EDGE) - EDGE) / SAMPLE_RATE
    wave = _sustained(timbre, frequencies, t, sound.attack / FRAME_RATE, FRAME_RATE / length)
    grains = _cut(wave, frames)
    size = sound.release * FRAME + 2 * EDGE
    fall = np.cos(0.5 * np.pi * np.clip((np.arange(size) - EDGE) / (sound.release * FRAME), 0, 1)) ** 2
    start = sound.attack * FRAME
    return grains, _cut(wave[start : start + size] * fall, sound.release)


def _cut(wave: Wave, frames: int) -> Wave:
    return np.stack([wave[i * FRAME : i * FRAME + GRAIN] for i in range(frames)])


def make_grains() -> Grains:
    """Return the windowed grains of all codes. Codes that no part uses are silent."""
    grains = np.zeros((len(PARTS), NUM_CODES, GRAIN))
    _put_drums(grains[0])
    for name, sound in CHORD_SOUNDS.items():
        for chord in CHORDS:
            _put(grains[1], 1, name, chord, _note(TIMBRES["chords", name], sound, chord_pitches(name, chord)))
    for name, sound in BASS_SOUNDS.items():
        for pitch in BASS_PITCHES:
            _put(grains[2], 2, name, pitch, _note(TIMBRES["bass", name], sound, (pitch,)))
    for name, sound in LEAD_SOUNDS.items():
        for pitch in LEAD_PITCHES:
            _put(grains[3], 3, name, pitch, _note(TIMBRES["lead", name], sound, (pitch,)))
    return (grains * WINDOW * _VOLUME).astype(np.float32)


def _put(grains: Wave, k: int, sound: str, item: object, note: tuple[Wave, Wave]) -> None:
    body, release = note
    for number, code in enumerate(PARTS[k].codes):
        if (code.sound, code.item) == (sound, item):
            grains[number] = release[code.position] if code.position < 0 else body[code.position]


def _put_drums(grains: Wave) -> None:
    for style in DRUM_STYLES:
        for tempo in TEMPOS:
            bar = drums.bar_of(style, tempo)
            wave = np.concatenate([bar[-2 * EDGE :], bar])  # hits begin right after the cross-fade
            first = PARTS[0].onset(style, (tempo, 1))
            grains[first : first + 16 * tempo] = _cut(wave, 16 * tempo)


def render(codes: Codes, grains: Grains) -> NDArray[np.float32]:
    """Return the waveform [T * FRAME] of codes [4, T]."""
    frames = sum(grains[k][row] for k, row in enumerate(codes))
    wave = np.zeros(codes.shape[1] * FRAME + 2 * EDGE, np.float32)
    for i, grain in enumerate(frames):  # type: ignore[arg-type]
        wave[i * FRAME : i * FRAME + GRAIN] += grain
    return wave[EDGE:-EDGE]
