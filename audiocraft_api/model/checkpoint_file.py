"""A checkpoint file of audiocraft's export format: its check sums, and reading it without running code of its own.

Free of torch until a file is read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from audiocraft_api.model.hub import WrongCheckpoint

Package = dict[str, Any]

_PIECE_BYTES = 16 * 2**20
_COPY_BYTES = 2**30  # the kernel copies without Python's lock
_HAS_MEMORY_FILES = hasattr(os, "memfd_create")
_NUM_REMEMBERED = 256  # files whose sums are not computed again while they stay as they are

_State = tuple[int, ...]
T = TypeVar("T")

_ahead: dict[Path, tuple[_State, Future[BinaryIO]]] = {}  # begun by `read_ahead`, until a read takes them


def fingerprint(*paths: Path) -> str:
    """Return 40 hex digits that follow the files' content, from the check sums that the files hold of their parts.

    Raises WrongCheckpoint.
    """
    return hashlib.sha256("".join(_sums(path, _state(path)) for path in paths).encode()).hexdigest()[:40]


def sha256(path: Path) -> str:
    """Return a file's SHA-256, as `sha256sum` prints it."""
    return _sha256(path, _state(path))


def _state(path: Path) -> _State:
    """Return what is another when the file is."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(_NUM_REMEMBERED)
def _sha256(path: Path, _of: _State) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(_NUM_REMEMBERED)
def _sums(path: Path, _of: _State) -> str:
    # The folder inside the file is the name that it was first saved under.
    return "".join(f"{part.filename.partition('/')[2]} {part.file_size} {part.CRC}\n" for part in _parts(path))


def _parts(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except zipfile.BadZipFile:
        raise WrongCheckpoint(f"{path.name} is damaged or was not written by torch.save") from None


def read(path: Path) -> Package:
    """Read a file, of which what is loaded was checked. Raises WrongCheckpoint.

    The tensors lie in memory of their own, because a mapped file that is overwritten would change or kill a running
    model; that memory is one piece, which lasts as long as any of them.
    """
    state, begun = _ahead.pop(path, (None, None))
    if begun is not None and state != _state(path):
        begun.add_done_callback(_close)
        begun = None
    with begun.result() if begun is not None else _checked(path) as memory:
        import torch

        is_copy = isinstance(memory.name, int)  # what has no name but its descriptor
        source = f"/proc/self/fd/{memory.fileno()}" if is_copy else path
        try:
            package = torch.load(source, map_location="cpu", mmap=is_copy, weights_only=True)
        except pickle.UnpicklingError:
            raise WrongCheckpoint(f"{path.name} holds more than weights and is not loaded, for safety") from None
    if not isinstance(package, dict):
        raise WrongCheckpoint(f"{path.name} is not a checkpoint exported by audiocraft")
    return package


def read_ahead(path: Path) -> None:
    """Begin to read a file, in a thread: the next `read` of it waits for that. Needs no torch."""
    if path not in _ahead:
        _ahead[path] = _state(path), in_thread(lambda: _checked(path))


def let_go(path: Path) -> None:
    """Drop what was read ahead of a file, if no `read` has taken it."""
    _, begun = _ahead.pop(path, (None, None))
    if begun is not None:
        begun.add_done_callback(_close)


def _close(read: Future[BinaryIO]) -> None:
    if read.exception() is None:
        read.result().close()


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Start work whose result, or error, somebody may come for; the process does not wait for it at its end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to who waits for the result
            future.set_exception(error)

    threading.Thread(target=run, name="read-checkpoint", daemon=True).start()
    return future


def _checked(path: Path) -> BinaryIO:
    """Copy a file into memory, and compare its parts with their check sums, which torch does not.

    Where a system has no such memory it is the file itself. Raises WrongCheckpoint.
    """
    memory = os.fdopen(os.memfd_create(path.name, os.MFD_CLOEXEC), "r+b") if _HAS_MEMORY_FILES else path.open("rb")
    try:
        if _HAS_MEMORY_FILES:
            _copy(path, memory)
        with zipfile.ZipFile(memory) as archive:
            for part in archive.infolist():
                # In large pieces: between two, Python's lock may have to be waited for.
                with archive.open(part) as content:
                    while content.read(_PIECE_BYTES):
                        pass
        return memory
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        memory.close()
        raise WrongCheckpoint(f"{path.name} is damaged ({error})") from None
    except BaseException:
        memory.close()
        raise


def _copy(path: Path, memory: BinaryIO) -> None:
    with path.open("rb") as file:
        while os.sendfile(memory.fileno(), file.fileno(), None, _COPY_BYTES):
            pass
