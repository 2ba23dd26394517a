"""Keeps finished audio as files of one directory, and sweeps it. Must not know who reads the files.

Several processes may share the directory. Leases are counted in this process; a file that another process sweeps
while it is read here stays readable, since POSIX keeps an unlinked file until its last reader closes it.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from audiocraft_api.config import Config
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.storage.base import FILENAME, LINK, OWNER, OpenAudio, StoredAudio, link_of, name_of, new_filename
from audiocraft_api.storage.sweeper import Sweeper

TEMPORARY = re.compile(rf"\.{LINK.pattern}\.part")
TEMPORARY_MAX_AGE_SECONDS = 3600.0  # no write takes so long: its writer is dead

logger = logging.getLogger(__name__)


class LocalStore:
    """The `AudioStore` of one machine: `config.storage.directory`, made when it is first written to."""

    def __init__(self, config: Config) -> None:
        self._directory = config.storage.directory
        self._max_age_seconds = config.storage.max_age_seconds
        self._max_total_bytes = config.storage.max_total_bytes
        # Reentrant: a forgotten file may be collected, and end its lease, while this thread holds the lock.
        self._lock = threading.RLock()
        self._leases: Counter[str] = Counter()
        self._sweeper = Sweeper(lambda: self.sweep(), config.storage.sweep_interval_seconds)

    def save(self, audio: bytes, extension: str, owner: str | None = None) -> StoredAudio:
        """Write to a temporary name in the same directory, sync, rename. Raises StorageUnavailable."""
        return self._write(new_filename(extension, owner), lambda file: file.write(audio))

    def copy(self, filename: str, owner: str | None = None) -> StoredAudio:
        """Copy the bytes: a link would share its age with the file, and be swept with it."""
        with self.open(filename).file as source:
            extension = filename.rpartition(".")[2]
            return self._write(new_filename(extension, owner), lambda file: shutil.copyfileobj(source, file))

    def open(self, filename: str) -> OpenAudio:
        """Open a file and lease it until it is closed. Raises NotFound, StorageUnavailable."""
        if not FILENAME.fullmatch(filename):
            raise NotFound("There is no such audio file.")
        self._sweeper.start()
        with self._lock:
            self._leases[filename] += 1
        try:
            descriptor, status = _open_regular(self._directory / filename)
        except OSError as error:
            self._release(filename)
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
                raise NotFound("There is no such audio file.") from None
            raise _unavailable("read", error) from error
        leased = _LeasedFile(descriptor, lambda: self._release(filename))
        return OpenAudio(_describe(filename, status), io.BufferedReader(leased))

    def url_for(self, filename: str) -> str:
        """Return the path of the file's route on this server."""
        return f"/audio/{link_of(filename)}"

    def redirect_for(self, filename: str, *, is_head: bool = False) -> str | None:  # noqa: ARG002
        """Return None: this server alone has the file."""
        return None

    def delete(self, filename: str) -> None:
        """Delete a file; its readers read on. Raises StorageUnavailable."""
        if FILENAME.fullmatch(filename):
            try:
                (self._directory / filename).unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable("deleted", error) from error

    def sweep(self) -> int:
        """Delete files over the age, then the oldest over the total size; leased ones stay. Raises StorageUnavailable.

        Files whose names this store does not make are left alone, but for the temporary files of writers that died.
        """
        now = time.time()
        kept: list[tuple[float, int, str]] = []  # modified_at, size_bytes, filename
        num_deleted = 0
        try:
            for filename, status in self._files():
                age_seconds = now - status.st_mtime
                if TEMPORARY.fullmatch(link_of(filename)):
                    if age_seconds > TEMPORARY_MAX_AGE_SECONDS:
                        (self._directory / filename).unlink(missing_ok=True)
                elif self._max_age_seconds and age_seconds > self._max_age_seconds and self._evict(filename):
                    num_deleted += 1
                else:
                    kept.append((status.st_mtime, status.st_size, filename))
            excess_bytes = sum(size for _, size, _ in kept) - self._max_total_bytes if self._max_total_bytes else 0
            for _, size_bytes, filename in sorted(kept):
                if excess_bytes <= 0:
                    break
                if self._evict(filename):
                    excess_bytes -= size_bytes
                    num_deleted += 1
        except OSError as error:
            raise _unavailable("swept", error) from error
        return num_deleted

    def close(self) -> None:
        """Stop the sweeper. Files stay."""
        self._sweeper.close()

    def _write(self, filename: str, write: Callable[[BinaryIO], object]) -> StoredAudio:
        self._sweeper.start()
        path = self._directory / filename
        temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _unavailable("written", error) from error
        return _describe(filename, status)

    def _files(self, owner: str | None = None) -> list[tuple[str, os.stat_result]]:
        """List this store's own files, or an owner's, the temporary ones included."""
        files: list[tuple[str, os.stat_result]] = []
        with suppress(FileNotFoundError), os.scandir(self._directory / (owner or "")) as entries:
            for entry in entries:
                if LINK.fullmatch(entry.name) or TEMPORARY.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # another process swept it
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            files.append((name_of(entry.name, owner), status))
                elif owner is None and OWNER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    files += self._files(entry.name)
        return files

    def _evict(self, filename: str) -> bool:
        """Delete a file unless it is leased; say whether it is gone."""
        with self._lock:
            if self._leases[filename] > 0:
                return False
            (self._directory / filename).unlink(missing_ok=True)
            return True

    def _release(self, filename: str) -> None:
        with self._lock:
            self._leases[filename] -= 1
            if self._leases[filename] <= 0:
                del self._leases[filename]


class _LeasedFile(io.FileIO):
    """A file that calls `release` once, when it is closed or forgotten."""

    def __init__(self, descriptor: int, release: Callable[[], None]) -> None:
        super().__init__(descriptor, "rb")
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        super().close()
        release, self._release = self._release, None
        if release is not None:
            release()


def _open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Open a regular file, neither through a link nor waiting for a pipe's writer. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR, "not a regular file", str(path))
    return descriptor, status


def _describe(filename: str, status: os.stat_result) -> StoredAudio:
    return StoredAudio(filename, status.st_size, status.st_mtime, etag=link_of(filename).partition(".")[0])


def _unavailable(verb: str, error: OSError) -> StorageUnavailable:
    logger.error("The audio store could not be %s: %s", verb, error)
    return StorageUnavailable("The audio store cannot be used now; try again later.")
