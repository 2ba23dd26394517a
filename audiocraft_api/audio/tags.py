"""The tags of an audio file, sanitized for every format. Knows no recipe.

Texts come from clients: characters that could end a tag early, break a line or reverse the reading direction are
removed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import astuple, dataclass, fields

import soundfile

MAX_TITLE_CHARACTERS = 120
SPECIAL, BACKSLASHED = r"[=;#\\]", r"\\\g<0>"  # of ffmpeg's metadata files
BIDIRECTIONAL_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Tags:
    """Tags that every format supports. The longest is last: in WAV, libsndfile stops reading at a tag over 2 KiB."""

    title: str
    artist: str
    genre: str
    comment: str

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, printable(getattr(self, field.name)))
        object.__setattr__(self, "title", shortened(" ".join(self.title.split()), MAX_TITLE_CHARACTERS))

    def ffmetadata(self) -> str:
        """Return the tags as an ffmpeg metadata file; on the command line, `ps` and the log would expose the prompt."""
        lines = [f"{name}={re.sub(SPECIAL, BACKSLASHED, text)}" for name, text in self._items()]
        # ffmpeg joins a line that ends in a backslash, even an escaped one, with the next line.
        lines = [f"{line} " if line.endswith("\\") else line for line in lines]
        return "\n".join([";FFMETADATA1", *lines, ""])

    def write(self, file: soundfile.SoundFile) -> None:
        """Write the tags before the samples or, in WAV, after them, because many readers expect samples at byte 44."""
        for name, text in self._items():
            setattr(file, name, text)

    def _items(self) -> list[tuple[str, str]]:
        named = zip((field.name for field in fields(self)), astuple(self), strict=True)
        return [(name, text) for name, text in named if text]


def printable(text: str) -> str:
    """Return the text on one line, without control characters, lone surrogates and bidirectional controls."""
    kept = (c for c in text if c not in BIDIRECTIONAL_CONTROLS and unicodedata.category(c) != "Cs")
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in kept)


def shortened(text: str, max_characters: int) -> str:
    """Return the text, cut and with an ellipsis if it is too long."""
    return text if len(text) <= max_characters else text[: max_characters - 1].rstrip() + "…"
