"""Packs audio and its stems into one file, so that a cached result is stored, found and deleted as a whole."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

PACKED_EXTENSION = "zip"
_MIX = "mix"


def packed(audio: bytes, stems: Mapping[str, bytes]) -> bytes:
    """Return a file with the encoded audio and its stems by name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ({_MIX: audio} | dict(stems)).items():
            archive.writestr(name, content)
    return file.getvalue()


def unpacked(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return the audio and the stems of a packed file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    return found.pop(_MIX), found
