"""Reads melodies that are written as text, such as `C4:1 E4:1 G4:2 -:1`: pitch or rest, and its length in beats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from audiocraft_api.core.melody_line import REST, MelodyLine, line_of

DEFAULT_BPM = 120  # as in MIDI files without a tempo
MAX_NOTES_CHARACTERS = 100_000

SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "b": -1}
PITCH = re.compile(r"([A-Ga-g])([#b]?)(-?[0-9]{1,2})")
# Few digits: other texts would take long to convert, or mean lengths that no melody has.
BEATS = re.compile(r"([0-9]{0,6}\.[0-9]{1,9}|[0-9]{1,6}\.?)(?:/([0-9]{1,6}))?")
WORD = rf"(?:-|{PITCH.pattern}):{BEATS.pattern}"
NOTES_PATTERN = rf"^\s*{WORD}(?:\s+{WORD})*\s*$"  # of notes; the ranges of pitches and beats are not in it
MAX_MIDI_PITCH = 127
SHOWN_CHARACTERS = 24  # of a note, in an error


class WrittenNote(NamedTuple):
    pitch: int  # MIDI, or REST
    beats: float


def parse_notes(text: str) -> list[WrittenNote]:
    """Return the notes and rests of a text. Raises ValueError with a sentence's predicate about the text."""
    notes = [_note(index, word) for index, word in enumerate(text.split(), start=1)]
    if all(note.pitch == REST for note in notes):
        raise ValueError("must contain at least one note, such as C4:1")
    return notes


def line_of_notes(notes: Sequence[WrittenNote], bpm: float) -> MelodyLine:
    """Return notes as a line, with `bpm` beats per minute."""
    beats, pitches = 0.0, []
    for note in notes:
        beats += note.beats
        pitches.append((note.pitch, beats * 60 / bpm))
    return line_of(pitches)


def _note(number: int, word: str) -> WrittenNote:
    pitch, colon, beats = word.partition(":")
    shown = ascii(word[:SHOWN_CHARACTERS])
    if not colon:
        raise ValueError(f"must have a pitch, a colon and beats in each note, such as C4:1; note {number} is {shown}")
    return WrittenNote(_pitch(number, pitch, shown), _beats(number, beats, shown))


def _pitch(number: int, text: str, shown: str) -> int:
    if text == "-":
        return REST
    found = PITCH.fullmatch(text)
    if found is None:
        raise ValueError(f"must have pitches such as C4, F#4 or Bb3, or - for a rest; note {number} is {shown}")
    name, accidental, octave = found.groups()
    pitch = 12 * (int(octave) + 1) + SEMITONES[name.upper()] + ACCIDENTALS[accidental]
    if not 0 <= pitch <= MAX_MIDI_PITCH:
        raise ValueError(f"must have pitches from C-1 to G9; note {number} is {shown}")
    return pitch


def _beats(number: int, text: str, shown: str) -> float:
    found = BEATS.fullmatch(text)
    if found is None:
        raise ValueError(f"must have beats such as 1, 0.5 or 1/3, above 0; note {number} is {shown}")
    beats, divisor = float(found[1]), float(found[2] or 1)
    if beats == 0 or divisor == 0:
        raise ValueError(f"must have beats above 0; note {number} is {shown}")
    return beats / divisor
