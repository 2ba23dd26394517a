"""Reads codes as a listener would hear them: legality, tempo, instruments, mode, and form."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo_models.composer import Codes
from demo_models.harmony import KEYS, tones_of
from demo_models.score import DRUM_STYLES, PARTS, SILENCE, Code, Part

UNUSED = Code("unused", 0, 0)


@dataclass(frozen=True)
class Note:
    """A note of the chords, the bass or the lead. Times are in frames."""

    start: int
    length: int
    sound: str
    item: Hashable


@dataclass(frozen=True)
class Reading:
    """What a piece is, as far as its codes tell. None where nothing plays."""

    tempo: int | None
    drums: bool
    chords: str | None
    bass: str | None
    lead: str | None
    mode: str | None
    on_grid: float  # share of onsets at the start of a sixteenth note
    chords_in_key: float
    lead_in_scale: float


def code_at(part: Part, number: int) -> Code:
    return part.codes[number] if number < len(part) else UNUSED


def legal_steps(codes: Codes) -> NDArray[np.bool_]:
    """Return [4, T - 1]: whether each frame may follow the one before.

    Drums go on, or a new beat begins where one ended, in the same tempo. The other parts go on, begin a note, or
    release a note that sounds.
    """
    steps = [
        [_is_legal(k, int(before), int(after)) for before, after in itertools.pairwise(row)]
        for k, row in enumerate(codes)
    ]
    return np.array(steps)


def _is_legal(k: int, before: int, after: int) -> bool:
    part = PARTS[k]
    if before >= len(part) or after >= len(part):
        return False
    following = part.successor[before]
    if following == after:
        return True
    old, new, expected = part.codes[before], part.codes[after], part.codes[following]
    if k == 0:
        assert isinstance(old.item, tuple)
        assert isinstance(new.item, tuple)
        return expected.position == 0 and new.position == 0 and old.item[0] == new.item[0]
    if new.position < 0:
        starts = part.release(new.sound, new.item) == after
        return starts and (old.sound, old.item) == (new.sound, new.item) and old.position >= 0
    return new.position == 0 and after != SILENCE


def notes(k: int, row: Codes) -> list[Note]:
    """Return the notes of part `k`, which is not the drums."""
    part, found = PARTS[k], []
    codes = [code_at(part, int(number)) for number in row]
    starts = [t for t, code in enumerate(codes) if code.position == 0 and code.sound not in ("silence", "unused")]
    for start, until in zip(starts, [*starts[1:], len(codes)], strict=False):
        sounding = [t for t in range(start, until) if codes[t].sound == codes[start].sound]
        found.append(Note(start, len(sounding), codes[start].sound, codes[start].item))
    return found


def grid(row: Codes) -> tuple[int | None, NDArray[np.int64]]:
    """Return the tempo and, for each frame, its place in its sixteenth note (0 at its start, -1 if unknown)."""
    items = [code_at(PARTS[0], int(number)) for number in row]
    places = [c.position % c.item[0] if isinstance(c.item, tuple) else -1 for c in items]
    return most(c.item[0] for c in items if isinstance(c.item, tuple)), np.array(places)


def bar_starts(row: Codes) -> list[int]:
    """Return the frames in which a bar begins."""
    codes = [code_at(PARTS[0], int(number)) for number in row]
    return [t for t, c in enumerate(codes) if isinstance(c.item, tuple) and c.item[1] == 1 and c.position == 0]


def most(items: Iterable[Hashable]) -> Hashable | None:
    """Return the most frequent item, None if there is none."""
    counted = Counter(items).most_common(1)
    return counted[0][0] if counted else None


def read(codes: Codes) -> Reading:
    """Return what a piece is."""
    tempo, places = grid(codes[0])
    styles = [code_at(PARTS[0], int(number)).sound for number in codes[0]]
    chords, bass, lead = (notes(k, codes[k]) for k in (1, 2, 3))
    key = _key_of([str(note.item) for note in chords])
    lead_pitches = [int(note.item) for note in lead]  # type: ignore[call-overload]
    onsets = [note.start for note in (*chords, *bass, *lead)]
    return Reading(
        tempo=tempo,  # type: ignore[arg-type]
        drums=sum(style in DRUM_STYLES[1:] for style in styles) > len(styles) / 2,
        chords=most(note.sound for note in chords),  # type: ignore[arg-type]
        bass=most(note.sound for note in bass),  # type: ignore[arg-type]
        lead=most(note.sound for note in lead),  # type: ignore[arg-type]
        mode=None if key is None else KEYS[key].mode,
        on_grid=_share(places[t] == 0 for t in onsets),
        chords_in_key=1.0 if key is None else _share(note.item in KEYS[key].degrees for note in chords),
        lead_in_scale=1.0 if key is None else _share(pitch % 12 in KEYS[key].scale for pitch in lead_pitches),
    )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return float(np.mean(values)) if values else 1.0


def _key_of(chords: list[str]) -> int | None:
    """Return the key that contains most chords; among equals the one whose tonic comes first, or most often."""
    if not chords:
        return None

    def score(index: int) -> tuple[int, bool, int]:
        degrees = KEYS[index].degrees
        return sum(c in degrees for c in chords), chords[0] == degrees[0], chords.count(str(degrees[0]))

    return max(range(len(KEYS)), key=score)


def form(codes: Codes) -> dict[str, list[bool]]:
    """Compare bars: does each chord equal that four bars (or one bar) earlier, does the lead's rhythm come back.

    The rhythm of bars 1 and 3 of a phrase is the same, that of bars 1 and 2 is not; a phrase is four bars. The bars of
    a phrase are counted from the start.
    """
    starts = bar_starts(codes[0])
    lead, chords = notes(3, codes[3]), notes(1, codes[1])
    names, rhythms, tunes = [], [], []
    for start, end in itertools.pairwise(starts):
        names.append(most(str(note.item) for note in chords if start <= note.start < end))
        rhythms.append([note.start - start for note in lead if start <= note.start < end])
        tunes.append([note.item for note in lead if start <= note.start < end])

    def same(bars: list[object], pairs: Iterable[tuple[int, int]]) -> list[bool]:
        return [bars[a] == bars[b] for a, b in pairs if b < len(bars)]

    every, count = range(len(names)), len(names)
    return {
        "chord of bar -4": same([*names], [(i, i + 4) for i in every]),
        "chord of bar -1": same([*names], [(i, i + 1) for i in every]),
        "rhythm of bar -2": same([*rhythms], [(i, i + 2) for i in range(0, count, 4)]),
        "rhythm of bar -4": same([*rhythms], [(i, i + 4) for i in every]),
        "rhythm of bar -1": same([*rhythms], [(i, i + 1) for i in range(0, count, 4)]),
        "tune of bar -4": same([*tunes], [(i, i + 4) for i in every]),
    }


def on_chord(codes: Codes) -> float:
    """Return the share of lead notes on the first and third beat that belong to the chord that sounds."""
    chords = [code_at(PARTS[1], int(number)) for number in codes[1]]
    beats = [code_at(PARTS[0], int(number)) for number in codes[0]]
    flags = []
    for note in notes(3, codes[3]):
        beat, chord = beats[note.start], chords[note.start]
        if isinstance(beat.item, tuple) and beat.item[1] in (1, 3) and beat.position == 0 and chord.sound != "silence":
            flags.append(int(note.item) % 12 in tones_of(str(chord.item)))  # type: ignore[call-overload]
    return _share(flags)


def sheet(codes: Codes) -> str:
    """Return a piece as text, one line for each bar: (step:note) of chords, bass and lead."""
    tempo, _ = grid(codes[0])
    starts = [*bar_starts(codes[0]), codes.shape[1]]
    lines = []
    for bar, (start, end) in enumerate(itertools.pairwise(starts), 1):
        parts = []
        for k in (1, 2, 3):
            inside = [n for n in notes(k, codes[k]) if start <= n.start < end]
            parts.append(" ".join(f"{(n.start - start) / tempo:g}:{n.item}" for n in inside))  # type: ignore[operator]
        style = code_at(PARTS[0], int(codes[0, start])).sound
        lines.append(f"{bar:2} {style:5} | " + " | ".join(parts))
    return "\n".join(lines)
