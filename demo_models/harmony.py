"""Keys, scales and chord loops."""

from __future__ import annotations

from dataclasses import dataclass

PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}


@dataclass(frozen=True)
class Key:
    """A key with its triads; `degrees[0]` is the tonic chord. The diminished chord is left out."""

    mode: str
    tonic: int  # pitch class
    degrees: tuple[str | None, ...]

    @property
    def scale(self) -> frozenset[int]:
        """The pitch classes of the key."""
        return frozenset((self.tonic + step) % 12 for step in SCALES[self.mode])


KEYS = (
    Key("major", 0, ("C", "Dm", "Em", "F", "G", "Am", None)),
    Key("major", 5, ("F", "Gm", "Am", "Bb", "C", "Dm", None)),
    Key("major", 7, ("G", "Am", "Bm", "C", "D", "Em", None)),
    Key("minor", 9, ("Am", None, "C", "Dm", "Em", "F", "G")),
    Key("minor", 2, ("Dm", None, "F", "Gm", "Am", "Bb", "C")),
    Key("minor", 4, ("Em", None, "G", "Am", "Bm", "C", "D")),
)
# One chord a bar, as degrees of the key. Each loop begins on the tonic, so that the mode is heard at once.
LOOPS = {
    "major": (
        (1, 5, 6, 4), (1, 6, 4, 5), (1, 4, 5, 1), (1, 4, 1, 5), (1, 3, 4, 5), (1, 6, 2, 5), (1, 4, 6, 5), (1, 2, 4, 1),
    ),
    "minor": (
        (1, 6, 3, 7), (1, 4, 5, 1), (1, 7, 6, 7), (1, 6, 4, 5), (1, 3, 7, 4), (1, 4, 7, 3), (1, 6, 7, 1), (1, 5, 6, 7),
    ),
}  # fmt: skip


def chord_of(key: int, loop: int, bar: int) -> str:
    """Return the chord of bar 0 to 3 of a loop."""
    chord = KEYS[key].degrees[LOOPS[KEYS[key].mode][loop][bar] - 1]
    assert chord is not None
    return chord


def loops_with(chord: str) -> list[tuple[int, int, int]]:
    """Return all (key, loop, bar) in which this chord is played."""
    places = [(key, loop, bar) for key in range(len(KEYS)) for loop in range(8) for bar in range(4)]
    return [place for place in places if chord_of(*place) == chord]


def root_of(chord: str) -> int:
    """Return the pitch class of a chord's root."""
    return PITCH_CLASSES.index(chord.removesuffix("m"))


def tones_of(chord: str) -> frozenset[int]:
    """Return the pitch classes of a triad."""
    root = root_of(chord)
    return frozenset({root, (root + (3 if chord.endswith("m") else 4)) % 12, (root + 7) % 12})
