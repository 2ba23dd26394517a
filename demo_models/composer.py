"""Composes pieces: codes [4, T] from a few facts about the piece.

A piece is a loop of four chords under a melody in phrases of four bars. The rhythm of the melody stays the same for the
whole piece; its contour sometimes changes where a phrase begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo_models.grooves import CONTOURS, GENRES, GROOVES, Groove
from demo_models.harmony import KEYS, LOOPS, Key, chord_of, root_of
from demo_models.score import (
    BASS_PITCHES,
    BASS_SOUNDS,
    CHORD_SOUNDS,
    LEAD_PITCHES,
    LEAD_SOUNDS,
    PARTS,
    SILENCE,
    TEMPOS,
    Part,
)

Codes = NDArray[np.int64]

_UNUSUAL = 0.3  # share of pieces with instruments that are unusual in their genre
_NEW_CONTOUR = 0.3  # share of phrases that do not keep the contour of the phrase before


@dataclass(frozen=True)
class Facts:
    """All that is decided about a piece before its first note, except the contours. `bass` is None without a bass."""

    groove: int
    tempo: int  # frames in a sixteenth note
    drums: bool
    key: int
    loop: int
    chords: str
    bass: str | None
    lead: str

    @property
    def genre(self) -> str:
        return GROOVES[self.groove].genre

    @property
    def mode(self) -> str:
        return KEYS[self.key].mode


def draw_facts(rng: np.random.Generator) -> Facts:
    """Draw the facts of a piece."""

    def pick(items: Sequence[Any]) -> Any:
        return items[rng.integers(len(items))]

    name = pick(list(GENRES))
    genre, unusual = GENRES[name], rng.random() < _UNUSUAL
    mode = "minor" if rng.random() < genre.minor_share else "major"
    bass = pick(list(BASS_SOUNDS) if unusual else genre.bass)
    return Facts(
        groove=pick([i for i, groove in enumerate(GROOVES) if groove.genre == name]),
        tempo=pick(TEMPOS if rng.random() < 0.2 else genre.tempos),
        drums=bool(rng.random() < (0.5 if unusual else genre.drums_share)),
        key=pick([i for i, key in enumerate(KEYS) if key.mode == mode]),
        loop=int(rng.integers(len(LOOPS[mode]))),
        chords=pick(list(CHORD_SOUNDS) if unusual else genre.chords),
        bass=bass if rng.random() < (0.6 if unusual else genre.bass_share) else None,
        lead=pick(list(LEAD_SOUNDS) if unusual else genre.lead),
    )


def bar_frames(facts: Facts) -> int:
    """Return the length of a bar in frames."""
    return len(GROOVES[facts.groove].chords) * facts.tempo


def compose(rng: np.random.Generator, facts: Facts, num_bars: int) -> Codes:
    """Return the codes [4, T] of the first bars of a piece."""
    groove = GROOVES[facts.groove]
    codes = np.full((len(PARTS), num_bars * bar_frames(facts)), SILENCE, np.int64)
    contour = rng.integers(len(CONTOURS))
    for bar in range(num_bars):
        start = bar * bar_frames(facts)
        if bar % 4 == 0 and rng.random() < _NEW_CONTOUR:
            contour = rng.integers(len(CONTOURS))
        _write_drums(codes[0], facts, groove, start)
        _write_chords(codes[1], facts, groove, start, bar % 4)
        _write_bass(codes[2], facts, groove, start, bar % 4, int(contour))
        _write_lead(codes[3], facts, groove, start, bar % 4, int(contour))
    return codes


def _paths(part: Part, length: int) -> Codes:
    """Return [codes, length]: each code and those that follow it."""
    path = np.empty((len(part), length), np.int64)
    path[:, 0] = np.arange(len(part))
    for i in range(1, length):
        path[:, i] = part.successor[path[:, i - 1]]
    return path


_LONGEST = 16 * max(TEMPOS)  # frames of a note
_PATHS = tuple(_paths(part, _LONGEST) for part in PARTS)


def successors_of(part: int, code: int) -> Codes:
    """Return a code and those that follow it when nothing new begins."""
    path: Codes = _PATHS[part][code]
    return path


def _write(row: Codes, part: int, onset: int, start: int, length: int) -> None:
    """Write a note of `length` frames. A sustained note ends with its release; a decaying note rings on."""
    code = PARTS[part].codes[onset]
    release = PARTS[part].release(code.sound, code.item)
    if release is None:
        end = min(start + _LONGEST, len(row))
        row[start:end] = _PATHS[part][onset, : end - start]
        return
    tail = [c for c in _PATHS[part][release, :4] if c != SILENCE]
    row[start : start + length - len(tail)] = _PATHS[part][onset, : length - len(tail)]
    row[start + length - len(tail) : start + length] = tail
    row[start + length :] = SILENCE


def notes_of(pattern: str) -> list[tuple[int, int, str]]:
    """Return (step, length in steps, letter) of each note of a pattern."""
    starts = [step for step, letter in enumerate(pattern) if letter not in "-."]
    held = [len(pattern[s + 1 :]) - len(pattern[s + 1 :].lstrip("-")) for s in starts]
    return [(s, 1 + h, pattern[s]) for s, h in zip(starts, held, strict=True)]


def _write_drums(row: Codes, facts: Facts, groove: Groove, start: int) -> None:
    style = GENRES[groove.genre].drums if facts.drums else "none"
    for i, beat in enumerate(groove.beats):
        onset = PARTS[0].onset(style, (facts.tempo, beat))
        at = start + 4 * i * facts.tempo
        row[at : at + 4 * facts.tempo] = np.arange(onset, onset + 4 * facts.tempo)


def _write_chords(row: Codes, facts: Facts, groove: Groove, start: int, bar: int) -> None:
    chord = chord_of(facts.key, facts.loop, bar)
    onset = PARTS[1].onset(facts.chords, chord, (facts.key, facts.loop, bar))
    for step, length, _ in notes_of(groove.chords):
        _write(row, 1, onset, start + step * facts.tempo, length * facts.tempo)


def _write_bass(row: Codes, facts: Facts, groove: Groove, start: int, bar: int, contour: int) -> None:
    announces = (facts.groove, contour)
    if facts.bass is None:
        row[start] = PARTS[2].onset("silence", 0, announces)
        return
    root = root_of(chord_of(facts.key, facts.loop, bar))
    for step, length, letter in notes_of(groove.bass):
        pitch_class = (root + (7 if letter == "f" else 0)) % 12
        pitch = next(p for p in BASS_PITCHES if p % 12 == pitch_class)
        onset = PARTS[2].onset(facts.bass, pitch, announces)
        _write(row, 2, onset, start + step * facts.tempo, length * facts.tempo)


def _write_lead(row: Codes, facts: Facts, groove: Groove, start: int, bar: int, contour: int) -> None:
    kind = (0, 1, 0, 2)[bar]
    chord, key = chord_of(facts.key, facts.loop, bar), KEYS[facts.key]
    for step, length, _ in notes_of(groove.lead[kind]):
        pitch = lead_pitch(key, chord, CONTOURS[contour][kind][step // 2])
        onset = PARTS[3].onset(facts.lead, pitch)
        _write(row, 3, onset, start + step * facts.tempo, length * facts.tempo)


def lead_pitch(key: Key, chord: str, offset: int) -> int:
    """Return the pitch `offset` steps of the scale above the chord's root, which lies between D4 and C#5."""
    scale = [p for p in range(LEAD_PITCHES[0] - 2, LEAD_PITCHES[-1] + 3) if p % 12 in key.scale]
    root = next(p for p in scale if p >= 62 and p % 12 == root_of(chord))
    return scale[scale.index(root) + offset]
