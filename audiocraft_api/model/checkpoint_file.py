"""A checkpoint file that torch saved: its checksums, and reading it without running any code in it.

Importing this module does not import torch; reading a file does.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
import threading
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from audiocraft_api.model.hub import WrongCheckpoint

Package = dict[str, Any]

_BLOCK_BYTES = 16 * 2**20  # large, because between two blocks this thread may have to wait for the GIL
_MAX_CACHED_FILES = 256  # files whose checksums are cached until they change

_FileState = tuple[int, ...]

# Global, because torch's list of accepted types is global: two reads at a time would remove each other's.
_READING = threading.Lock()


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


def read(path: Path, *, mapped: bool = False) -> Package:
    """Read a file whose parts match their checksums. Raises WrongCheckpoint.

    The tensors are copied into memory unless `mapped`: overwriting a mapped file would change the weights of a running
    model or crash the process, so the caller copies what it keeps. Beside tensors and plain values, a file may contain
    configurations of OmegaConf, which audiocraft's trainer saves.
    """
    import torch

    _verify(path)
    try:
        with _READING, torch.serialization.safe_globals(_configuration_types()):
            package = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it contains a {found[1]})" if found else ""
        raise WrongCheckpoint(f"{path.name} contains more than weights and is not loaded, for safety{what}") from None
    if not isinstance(package, dict):
        raise WrongCheckpoint(f"{path.name} is not a checkpoint exported by audiocraft")
    return package


def _configuration_types() -> list[Any]:
    """Return the types that a pickled configuration consists of. Creating one runs no code of the file."""
    from omegaconf import DictConfig, ListConfig, nodes
    from omegaconf.base import ContainerMetadata, Metadata

    values = (nodes.AnyNode, nodes.BooleanNode, nodes.FloatNode, nodes.IntegerNode, nodes.StringNode)
    return [DictConfig, ListConfig, ContainerMetadata, Metadata, *values, Any, defaultdict, dict, list, int]


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
