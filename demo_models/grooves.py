"""Grooves: what a bar of each genre looks like, on a grid of sixteenth notes.

In a pattern, `x` begins a note, `-` holds it and `.` is a rest. In the bass, `r` begins the chord's root and `f` its
fifth. The lead has three patterns: a phrase of four bars is played a, b, a, c, and c ends the phrase.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Groove:
    """One way to play a genre."""

    genre: str
    chords: str
    bass: str
    lead: tuple[str, str, str]

    @property
    def beats(self) -> tuple[int, ...]:
        """The beats of the drums that make a bar: a waltz leaves out the third."""
        return (1, 2, 4) if len(self.chords) == 12 else (1, 2, 3, 4)


@dataclass(frozen=True)
class Genre:
    """What is usual in a genre: the first of each tuple is the most usual."""

    drums: str
    tempos: tuple[int, ...]
    chords: tuple[str, ...]
    bass: tuple[str, ...]
    lead: tuple[str, ...]
    drums_share: float
    bass_share: float
    minor_share: float


GENRES = {
    "lofi": Genre("soft", (10, 8), ("keys",), ("finger",), ("piano", "bells", "flute"), 0.9, 0.9, 0.6),
    "techno": Genre("four", (6,), ("pad", "organ"), ("synth",), ("synth", "bells"), 0.95, 0.95, 0.7),
    "pop": Genre("rock", (7, 6), ("guitar", "organ", "keys"), ("finger",), ("piano", "synth", "violin"), 0.9, 0.9, 0.3),
    "ballad": Genre("soft", (10, 8), ("keys", "pad"), ("finger",), ("piano", "violin", "flute"), 0.4, 0.8, 0.5),
    "waltz": Genre("soft", (8, 7), ("guitar", "organ"), ("finger",), ("violin", "flute", "piano"), 0.4, 0.8, 0.4),
    "folk": Genre("soft", (8, 7), ("guitar",), ("finger",), ("flute", "violin", "marimba"), 0.3, 0.7, 0.3),
    "ambient": Genre("soft", (10,), ("pad",), ("synth",), ("bells", "flute", "synth"), 0.1, 0.6, 0.5),
}

GROOVES = (
    Groove(
        "lofi", "x-----x---------", "r---------f-----",
        ("x---x-x---x-....", "x-x---x---x-x---", "x---x-x-x-------"),
    ),
    Groove(
        "lofi", "x---------x-----", "r-----r---f-----",
        ("..x-x-x-x---x---", "..x-x---x---....", "..x-x-x---------"),
    ),
    Groove(
        "lofi", "x-------x-------", "r-------r-------",
        ("x-----x---x-x---", "x---x---x-------", "x-----x---------"),
    ),
    Groove(
        "techno", "x-----x-----x---", "r.r.r.r.r.r.r.r.",
        ("x-x-x-x-x-x-x-x-", "x-x-x-..x-x-x-..", "x-x-x-x-x-......"),
    ),
    Groove(
        "techno", "x---------------", "r...r.r.r...r.r.",
        ("x--x--x--x--x-x-", "x--x--x---......", "x--x--x---------"),
    ),
    Groove(
        "pop", "x---x---x---x---", "r-r-r-r-r-r-r-r-",
        ("x-x-x---x-x-x---", "x---x-x-x---x---", "x-x-x-x-x-------"),
    ),
    Groove(
        "pop", "x-----x---x-----", "r-----r---r---f-",
        ("x---x-x---x-x---", "x---x-x-x-x-....", "x---x-x---------"),
    ),
    Groove(
        "pop", "x-------x-------", "r---r---f---r---",
        ("x--x--x-x--x--x-", "x---x---x--x--x-", "x--x--x---------"),
    ),
    Groove(
        "ballad", "x-------x-------", "r-------f-------",
        ("x-------x---x---", "x---x---x-------", "x---------------"),
    ),
    Groove(
        "ballad", "x---x---x---x---", "r---------------",
        ("x-----x-x-------", "x-----x-x---x---", "x-----x---......"),
    ),
    Groove(
        "waltz", "x---x---x---", "r-----------",
        ("x---x---x---", "x-------x---", "x-----------"),
    ),
    Groove(
        "waltz", "x---x-x-x---", "r-------f---",
        ("x---x-x-x---", "x---x---x-x-", "x-------...."),
    ),
    Groove(
        "folk", "x---x-x-x-x-x---", "r-------f-------",
        ("x-x-x-x-x---x---", "x---x-x-x---x-x-", "x-x-x-x-x-------"),
    ),
    Groove(
        "folk", "x---x---x-x-x-x-", "r---f---r---f---",
        ("x---x-x-x-x-x---", "x-x-x---x-x-x---", "x---x---x-------"),
    ),
    Groove(
        "ambient", "x---------------", "r---------------",
        ("x-----------x---", "....x-------....", "x---------......"),
    ),
    Groove(
        "ambient", "x---------------", "r---------------",
        ("x-------x-------", "x-------........", "x---------------"),
    ),
)  # fmt: skip

# The lead's pitch as steps of the scale above the chord's root, for each eighth note of a bar a, b and c. Even numbers
# up to 4 are tones of the chord; the first and the third beat have them.
CONTOURS = (
    ((0, 1, 2, 3, 4, 3, 2, 1), (2, 3, 4, 3, 2, 1, 0, 1), (4, 3, 2, 1, 0, 0, 0, 0)),
    ((4, 3, 2, 1, 2, 1, 0, -1), (4, 4, 3, 2, 0, 1, 2, 1), (2, 1, 0, 1, 0, 0, 0, 0)),
    ((2, 1, 2, 3, 2, 3, 4, 3), (0, 1, 2, 1, 4, 3, 2, 1), (2, 3, 2, 1, 2, 2, 2, 2)),
    ((0, 2, 4, 2, 4, 3, 2, 0), (0, 2, 4, 3, 2, 0, 2, 1), (4, 2, 4, 2, 0, 0, 0, 0)),
)
