"""What an audio file says of itself, made fit for every format's tags. Knows no recipe.

Texts come from strangers. What could end a tag early, break a line or turn round what is read is left out; a text is
one argument of ffmpeg's, behind a name of ours, and never goes through a shell.
"""

from __future__ import annotations

import unicodedata
from dataclasses import astuple, dataclass, fields

import soundfile

MAX_TITLE_CHARACTERS = 120
BIDIRECTIONAL_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Tags:
    """Tags that all formats have, the longest last: libsndfile reads no further in WAV than the first of 2 KiB."""

    title: str
    artist: str
    genre: str
    comment: str

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, printable(getattr(self, field.name)))
        object.__setattr__(self, "title", shortened(" ".join(self.title.split()), MAX_TITLE_CHARACTERS))

    def arguments(self) -> list[str]:
        """Return ffmpeg's arguments that write them."""
        return [argument for name, text in self._items() for argument in ("-metadata", f"{name}={text}")]

    def write(self, file: soundfile.SoundFile) -> None:
        """Write them with libsndfile: after WAV's samples, whose header many take for 44 bytes; else before."""
        for name, text in self._items():
            setattr(file, name, text)

    def _items(self) -> list[tuple[str, str]]:
        named = zip((field.name for field in fields(self)), astuple(self), strict=True)
        return [(name, text) for name, text in named if text]


def printable(text: str) -> str:
    """Return a text of one line, without controls, lone surrogates and marks that change its direction."""
    kept = (c for c in text if c not in BIDIRECTIONAL_CONTROLS and unicodedata.category(c) != "Cs")
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in kept)


def shortened(text: str, max_characters: int) -> str:
    """Return a text that is cut, and says so, where it is too long."""
    return text if len(text) <= max_characters else text[: max_characters - 1].rstrip() + "…"
