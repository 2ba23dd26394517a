"""What an audio file says of itself, made fit for every format's tags. Knows no recipe.

Texts come from strangers: what could end a tag early, break a line or turn round what is read is left out.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import astuple, dataclass, fields

import soundfile

MAX_TITLE_CHARACTERS = 120
SPECIAL, BACKSLASHED = r"[=;#\\]", r"\\\g<0>"  # in ffmpeg's files of metadata
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

    def ffmetadata(self) -> str:
        """Return them as a file of ffmpeg's: of its arguments, `ps` and the log would tell everybody."""
        lines = [f"{name}={re.sub(SPECIAL, BACKSLASHED, text)}" for name, text in self._items()]
        # Any backslash at its end makes ffmpeg go on with the next line, an escaped one too.
        lines = [f"{line} " if line.endswith("\\") else line for line in lines]
        return "\n".join([";FFMETADATA1", *lines, ""])

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
