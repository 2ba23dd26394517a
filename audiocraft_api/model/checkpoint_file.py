"""A checkpoint file in audiocraft's export format: its checksums, and reading it without running any code in it.

Importing this module does not import torch; reading a file does.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

from audiocraft_api.model.hub import WrongCheckpoint

Package = dict[str, Any]

_BLOCK_BYTES = 16 * 2**20  # large, because between two blocks this thread may have to wait for the GIL
_MAX_CACHED_FILES = 256  # files whose checksums are cached until they change

_FileState = tuple[int, ...]


def fingerprint(*paths: Path) -> str:
    """Return 40 hex digits that depend on the files' content, derived from the checksums that each file contains.

    Raises WrongCheckpoint.
    """
    return hashlib.sha256("".join(_checksums(path, _state(path)) for path in paths).encode()).hexdigest()[:40]


def sha256(path: Path) -> str:
    """Return a file's SHA-256, as `sha256sum` prints it. Reads an unchanged file only once."""
    return _sha256(path, _state(path))


def _state(path: Path) -> _FileState:
    """Return values that differ once the file has been written to or replaced."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(_MAX_CACHED_FILES)
def _sha256(path: Path, _state: _FileState) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(_MAX_CACHED_FILES)
def _checksums(path: Path, _state: _FileState) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile:
        raise WrongCheckpoint(f"{path.name} is damaged or was not written by torch.save") from None
    # The top-level folder inside the file is the name that the file was first saved under.
    return "".join(f"{part.filename.partition('/')[2]} {part.file_size} {part.CRC}\n" for part in parts)


def read(path: Path) -> Package:
    """Read a file whose parts match their checksums. Raises WrongCheckpoint.

    The tensors are copied into memory, not mapped: overwriting a mapped file would change the weights of a running
    model or crash the process.
    """
    import torch

    _verify(path)
    try:
        package = torch.load(path, map_location="cpu", mmap=False, weights_only=True)
    except pickle.UnpicklingError:
        raise WrongCheckpoint(f"{path.name} contains more than weights and is not loaded, for safety") from None
    if not isinstance(package, dict):
        raise WrongCheckpoint(f"{path.name} is not a checkpoint exported by audiocraft")
    return package


def _verify(path: Path) -> None:
    """Compare the file's parts with their checksums, which torch does not do. Raises WrongCheckpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                with archive.open(part) as content:  # raises at its end when the checksum is wrong
                    while content.read(_BLOCK_BYTES):
                        pass
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise WrongCheckpoint(f"{path.name} is damaged ({error})") from None
