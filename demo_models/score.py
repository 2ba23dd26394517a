"""The score: what each of the 4 x 2048 codes means, and which code may follow which.

Each codebook is one part of a band: drums and clock, chords, bass, lead. In this order the delay pattern shows each
part what the earlier ones play in the same frame. A code names 20 ms of one note: its sound, its pitch or chord, and
the frame's place in the note. The first frame of a chord or of a bass note also announces something: the chord's names
the key, the chord loop and the bar of the loop; the bass note's names the groove and the melody's contour. Codes that
differ only in what they announce sound the same.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from demo_models.harmony import loops_with

NUM_CODES = 2048  # entries of a codebook
FRAME_RATE = 50  # Hz
SAMPLE_RATE = 32_000  # Hz
FRAME = SAMPLE_RATE // FRAME_RATE  # samples
SILENCE = 0  # the code of every part but the drums in which nothing sounds

TEMPOS = (10, 8, 7, 6)  # frames in a sixteenth note: 75, 94, 107 and 125 beats per minute
DRUM_STYLES = ("none", "soft", "rock", "four")  # "none" is silent: the clock alone
BEATS = (1, 2, 3, 4)

# Chords in close position around middle C, as MIDI pitches.
CHORDS = {
    "C": (55, 60, 64), "Dm": (57, 62, 65), "Em": (55, 59, 64), "F": (57, 60, 65), "G": (55, 59, 62),
    "Am": (57, 60, 64), "Bb": (58, 62, 65), "D": (57, 62, 66), "Bm": (54, 59, 62), "Gm": (55, 58, 62),
}  # fmt: skip
# What the electric piano plays in their place.
SEVENTHS = {
    "C": (55, 59, 64), "Dm": (57, 60, 65), "Em": (55, 59, 62), "F": (57, 60, 64), "G": (55, 59, 62),
    "Am": (55, 60, 64), "Bb": (58, 62, 65, 69), "D": (57, 62, 66), "Bm": (54, 57, 62), "Gm": (55, 58, 62, 65),
}  # fmt: skip
NUM_GROOVES, NUM_CONTOURS = 16, 4
BASS_PITCHES = (31, 33, 34, 35, 36, 38, 40, 41, 42)  # one for each pitch class that a root or a fifth needs
LEAD_PITCHES = tuple(range(60, 80))


@dataclass(frozen=True)
class Sound:
    """How long a sound's notes are, in frames.

    A sound that decays lasts `attack` frames and ends in silence. A sustained one repeats a loop after the attack, and
    ends with `release` frames. The loop's length depends on the pitch: `loops` are the shortest and the longest.
    """

    attack: int
    loops: tuple[int, int] | None = None
    release: int = 0


CHORD_SOUNDS = {
    "keys": Sound(34),
    "guitar": Sound(30),
    "pad": Sound(8, (12, 24), 3),
    "organ": Sound(2, (12, 24), 2),
}
BASS_SOUNDS = {"finger": Sound(40), "synth": Sound(3, (16, 44), 2)}
LEAD_SOUNDS = {
    "piano": Sound(28),
    "bells": Sound(22),
    "marimba": Sound(10),
    "flute": Sound(3, (7, 13), 2),
    "violin": Sound(4, (7, 13), 2),
    "synth": Sound(2, (7, 13), 2),
}


@dataclass(frozen=True)
class Code:
    """What one code means. In a release, `position` counts from -`release` to -1. `announces` is of first frames."""

    sound: str
    item: Hashable  # tempo and beat, chord, or pitch
    position: int
    announces: tuple[int, int, int] | tuple[int, int] | None = None


@dataclass
class Part:
    """The codes of one codebook. `successor[c]` follows `c` when nothing new begins."""

    name: str
    codes: list[Code] = field(default_factory=list)
    successor: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_CODES, np.int64))
    _first: dict[Hashable, int] = field(default_factory=dict)
    _release: dict[tuple[str, Hashable], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.codes)

    def onset(self, sound: str, item: Hashable, announces: tuple[int, ...] | None = None) -> int:
        """Return the code of a note's first frame."""
        return self._first[sound, item, announces]

    def release(self, sound: str, item: Hashable) -> int | None:
        """Return the first code of a note's release, None for sounds that decay."""
        return self._release.get((sound, item))

    def append(self, code: Code) -> int:
        """Append a code and return its number."""
        self.codes.append(code)
        if len(self.codes) > NUM_CODES:
            raise ValueError(f"the {self.name} need more than {NUM_CODES} codes")
        return len(self.codes) - 1

    def add_silence(self, announcements: list[tuple[int, int]]) -> None:
        """Append silence, and the silent notes that announce something."""
        for announces in (None, *announcements):
            code = self.append(Code("silence", 0, 0, announces))
            self._first["silence", 0, announces] = code
            self.successor[code] = SILENCE

    def add_note(self, sound: str, item: Hashable, frames: list[int], announcements: list[tuple[int, ...]]) -> None:
        """Append a note with one first frame for each announcement.

        `frames` are its attack (with the first frame), its loop, and its release.
        """
        attack, loop, release = frames
        firsts = [self.append(Code(sound, item, 0, a)) for a in announcements]  # type: ignore[arg-type]
        self._first.update({(sound, item, a): first for first, a in zip(firsts, announcements, strict=True)})
        body = [self.append(Code(sound, item, position)) for position in range(1, attack + loop)]
        self.successor[firsts] = body[0]
        self.successor[body] = [*body[1:], body[attack - 1] if loop else SILENCE]
        if release:
            tail = [self.append(Code(sound, item, position)) for position in range(-release, 0)]
            self.successor[tail] = [*tail[1:], SILENCE]
            self._release[sound, item] = tail[0]


def hertz(pitch: float) -> float:
    """Return the frequency of a MIDI pitch in Hz."""
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def loop_of(pitches: tuple[int, ...], loops: tuple[int, int]) -> tuple[int, list[float]]:
    """Return the length in frames of a loop, and frequencies close to the pitches' that fit into it exactly.

    It is the first length with an error of at most 4 cents, otherwise the one with the smallest error.
    """
    best: tuple[float, int, list[float]] | None = None
    for length in range(loops[0], loops[1] + 1):
        grid = FRAME_RATE / length
        tuned = [max(1, round(hertz(p) / grid)) * grid for p in pitches]
        cents = max(abs(1200 * np.log2(f / hertz(p))) for f, p in zip(tuned, pitches, strict=True))
        if best is None or cents < best[0]:
            best = (cents, length, tuned)
        if cents <= 4:
            break
    assert best is not None
    return best[1], best[2]


def chord_pitches(sound: str, chord: str) -> tuple[int, ...]:
    return SEVENTHS[chord] if sound == "keys" else CHORDS[chord]


def _lengths(sound: Sound, pitches: tuple[int, ...]) -> list[int]:
    return [sound.attack, loop_of(pitches, sound.loops)[0] if sound.loops else 0, sound.release]


def _drums() -> Part:
    part = Part("drums")
    for style in DRUM_STYLES:
        for tempo in TEMPOS:
            first = len(part)
            for beat in BEATS:
                part._first[style, (tempo, beat), None] = len(part)
                for position in range(4 * tempo):
                    part.append(Code(style, (tempo, beat), position))
            bar = np.arange(first, len(part))
            part.successor[bar] = np.roll(bar, -1)
    return part


def _chords() -> Part:
    part = Part("chords")
    part.add_silence([])
    for name, sound in CHORD_SOUNDS.items():
        for chord in CHORDS:
            part.add_note(name, chord, _lengths(sound, chord_pitches(name, chord)), loops_with(chord))
    return part


def _bass() -> Part:
    part = Part("bass")
    announcements = [(groove, contour) for groove in range(NUM_GROOVES) for contour in range(NUM_CONTOURS)]
    part.add_silence(announcements)
    for name, sound in BASS_SOUNDS.items():
        for pitch in BASS_PITCHES:
            part.add_note(name, pitch, _lengths(sound, (pitch,)), [*announcements])
    return part


def _lead() -> Part:
    part = Part("lead")
    part.add_silence([])
    for name, sound in LEAD_SOUNDS.items():
        for pitch in LEAD_PITCHES:
            part.add_note(name, pitch, _lengths(sound, (pitch,)), [None])  # type: ignore[list-item]
    return part


PARTS = (_drums(), _chords(), _bass(), _lead())
