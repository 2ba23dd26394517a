"""A melody as notes, one at a time: what a model follows without any recording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

REST = -1  # in place of a pitch


class LineNote(NamedTuple):
    """A note, or a rest, that sounds from the end of the one before to `end_ms`."""

    end_ms: int
    pitch: int  # MIDI, 60 is middle C; or REST


@dataclass(frozen=True)
class MelodyLine:
    """Notes and rests without gaps, from 0. Their ends ascend.

    Ends are whole milliseconds, so that a melody has the same line however its times were computed.
    """

    notes: tuple[LineNote, ...]

    @property
    def seconds(self) -> float:
        return self.notes[-1].end_ms / 1000 if self.notes else 0.0

    def to_json(self) -> list[list[int]]:
        return [list(note) for note in self.notes]

    @classmethod
    def from_json(cls, value: Iterable[Sequence[int]]) -> MelodyLine:
        return cls(tuple(LineNote(end, pitch) for end, pitch in value))


def line_of(pitches: Iterable[tuple[int, float]]) -> MelodyLine:
    """Return the line of pitches with the seconds at which each ends. Equal successive pitches become one note."""
    rounded = [LineNote(round(end * 1000), pitch) for pitch, end in pitches]
    starts = [0, *(note.end_ms for note in rounded)]
    heard = [note for start, note in zip(starts, rounded, strict=False) if note.end_ms > start]
    return MelodyLine(tuple(list(same)[-1] for _, same in groupby(heard, key=lambda note: note.pitch)))
