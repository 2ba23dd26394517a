"""Stores audio as files in one directory, and sweeps it. Knows nothing of requests and callers.

Several processes may share the directory. Leases are counted per process. A file that another process deletes while
this process reads it stays readable, because POSIX keeps an unlinked file until its last reader closes it.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from audiocraft_api.config.storage import StorageSettings
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.storage.base import (
    CODES_SUFFIX,
    FILENAME,
    LINK,
    MAX_CODES_BYTES,
    OWNER,
    OpenAudio,
    StoredAudio,
    link_of,
    name_of,
    new_filename,
)
from audiocraft_api.storage.sweeper import Sweeper

CODES = re.compile(LINK.pattern + re.escape(CODES_SUFFIX))
TEMPORARY = re.compile(rf"\.{LINK.pattern}({re.escape(CODES_SUFFIX)})?\.part")
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)
TEMPORARY_MAX_AGE_SECONDS = 3600.0  # no write takes this long, so the writer must have died

logger = logging.getLogger(__name__)


class LocalStore:
    """The `AudioStore` of one machine. Its directory is created when the first file is saved."""

    def __init__(
        self, config: StorageSettings, observer: Observer = NULL_OBSERVER, *, background_sweep: bool = True
    ) -> None:
        """With `background_sweep`, the first use starts a thread that sweeps."""
        self._directory = config.directory
        self._max_age_seconds = config.max_age_seconds
        self._max_total_bytes = config.max_total_bytes
        # Reentrant: garbage collection of an unclosed file may end its lease while this thread holds the lock.
        self._lock = threading.RLock()
        self._leases: Counter[str] = Counter()
        self._observer = observer
        self._background_sweep = background_sweep
        self._sweeper = Sweeper(lambda: self.sweep(), config.sweep_interval_seconds)

    def save(
        self,
        audio: bytes,
        extension: str,
        owner: str | None = None,
        codes: bytes | None = None,
        stem: str | None = None,
    ) -> StoredAudio:
        """Write the files one after the other. Raises StorageUnavailable if the audio cannot be written."""
        filename = new_filename(extension, owner, stem)
        self._start_sweeper()
        stored = _describe(filename, self._write(filename, audio))
        if codes is not None:
            with suppress(StorageUnavailable):
                self._write(filename + CODES_SUFFIX, codes)
        return stored

    def open(self, filename: str) -> OpenAudio:
        """Open a file and hold a lease on it until the file is closed. Raises NotFound, StorageUnavailable."""
        if not FILENAME.fullmatch(filename):
            raise NotFound("There is no such audio file.")
        self._start_sweeper()
        with self._lock:
            self._leases[filename] += 1
        try:
            descriptor, status = _open_regular(self._directory / filename)
        except OSError as error:
            self._release(filename)
            if error.errno in MISSING:
                raise NotFound("There is no such audio file.") from None
            raise self._unavailable("read from", error) from error
        leased = _LeasedFile(descriptor, lambda: self._release(filename))
        return OpenAudio(_describe(filename, status), io.BufferedReader(leased))

    def codes_of(self, filename: str) -> bytes | None:
        """Read the file beside the audio. Raises StorageUnavailable."""
        if not FILENAME.fullmatch(filename):
            return None
        try:
            descriptor, _ = _open_regular(self._directory / (filename + CODES_SUFFIX))
            with open(descriptor, "rb") as file:
                return file.read(MAX_CODES_BYTES)
        except OSError as error:
            if error.errno in MISSING:
                return None
            raise self._unavailable("read from", error) from error

    def find(self, extension: str, owner: str | None) -> list[StoredAudio]:
        """List the directory of the owner. Raises StorageUnavailable."""
        try:
            files = self._files(owner)
        except OSError as error:
            raise self._unavailable("read from", error) from error
        found = [
            _describe(filename, status)
            for filename, status in files
            if FILENAME.fullmatch(filename)
            and filename == name_of(link_of(filename), owner)  # without those of others
            and filename.endswith(f".{extension}")
            and not (self._max_age_seconds and time.time() - status.st_mtime > self._max_age_seconds)
        ]
        return sorted(found, key=lambda stored: -stored.modified_at)

    def url_for(self, filename: str) -> str:
        """Return the path of the file on this server."""
        return f"/audio/{link_of(filename)}"

    def redirect_for(self, filename: str, *, is_head: bool = False) -> str | None:  # noqa: ARG002
        """Return None: only this server can send the file."""
        return None

    def delete(self, filename: str) -> None:
        """Delete a file; open files stay readable. Raises StorageUnavailable."""
        if FILENAME.fullmatch(filename):
            try:
                self._unlink(filename)
            except OSError as error:
                raise self._unavailable("delete from", error) from error

    def sweep(self) -> int:
        """Delete files beyond the maximum age, then the oldest beyond the total size, except leased files.

        Other files in the directory are left alone, except temporary files whose writer has died and codes without
        their audio. Raises StorageUnavailable.
        """
        now = time.time()
        kept: list[tuple[float, int, str]] = []  # modified_at, size_bytes with codes, filename
        num_deleted = 0
        try:
            files = dict(self._files())
            for filename, status in files.items():
                age_seconds = now - status.st_mtime
                if not FILENAME.fullmatch(filename):
                    audio = filename.removesuffix(CODES_SUFFIX)
                    if (audio == filename or audio not in files) and age_seconds > TEMPORARY_MAX_AGE_SECONDS:
                        (self._directory / filename).unlink(missing_ok=True)
                elif self._max_age_seconds and age_seconds > self._max_age_seconds and self._evict(filename):
                    num_deleted += 1
                else:
                    codes = files.get(filename + CODES_SUFFIX)
                    size_bytes = status.st_size + (codes.st_size if codes else 0)
                    kept.append((status.st_mtime, size_bytes, filename))
            excess_bytes = sum(size for _, size, _ in kept) - self._max_total_bytes if self._max_total_bytes else 0
            for _, size_bytes, filename in sorted(kept):
                if excess_bytes <= 0:
                    break
                if self._evict(filename):
                    excess_bytes -= size_bytes
                    num_deleted += 1
        except OSError as error:
            raise self._unavailable("sweep", error) from error
        return num_deleted

    def close(self) -> None:
        """Stop the sweeper. Files are kept."""
        self._sweeper.close()

    def _start_sweeper(self) -> None:
        if self._background_sweep:
            self._sweeper.start()

    def _unavailable(self, verb: str, error: OSError) -> StorageUnavailable:
        self._observer.storage_failed("audio")
        logger.error("Could not %s the audio store: %s", verb, error)
        return StorageUnavailable("The audio store is unavailable. Try again later.")

    def _write(self, name: str, data: bytes) -> os.stat_result:
        """Write to a temporary name in the same directory, sync, then rename. Raises StorageUnavailable."""
        path = self._directory / name
        temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise self._unavailable("write to", error) from error
        return status

    def _unlink(self, filename: str) -> None:
        """Delete the audio last: codes without their audio are found only an hour later. Raises OSError."""
        (self._directory / (filename + CODES_SUFFIX)).unlink(missing_ok=True)
        (self._directory / filename).unlink(missing_ok=True)

    def _files(self, owner: str | None = None) -> list[tuple[str, os.stat_result]]:
        """List the files of this store, or of one owner, including codes and temporary files."""
        files: list[tuple[str, os.stat_result]] = []
        with suppress(FileNotFoundError), os.scandir(self._directory / (owner or "")) as entries:
            for entry in entries:
                if any(pattern.fullmatch(entry.name) for pattern in (LINK, CODES, TEMPORARY)):
                    with suppress(FileNotFoundError):  # swept by another process
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            files.append((name_of(entry.name, owner), status))
                elif owner is None and OWNER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    files += self._files(entry.name)
        return files

    def _evict(self, filename: str) -> bool:
        """Delete a file unless it is leased. Return whether it was deleted."""
        with self._lock:
            if self._leases[filename] > 0:
                return False
            self._unlink(filename)
            return True

    def _release(self, filename: str) -> None:
        with self._lock:
            self._leases[filename] -= 1
            if self._leases[filename] <= 0:
                del self._leases[filename]


class _LeasedFile(io.FileIO):
    """A file that calls `release` once, when it is closed or garbage-collected."""

    def __init__(self, descriptor: int, release: Callable[[], None]) -> None:
        super().__init__(descriptor, "rb")
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        super().close()
        release, self._release = self._release, None
        if release is not None:
            release()


def _open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Open a regular file, without following a symbolic link or blocking on a pipe. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR, "not a regular file", str(path))
    return descriptor, status


def _describe(filename: str, status: os.stat_result) -> StoredAudio:
    return StoredAudio(filename, status.st_size, status.st_mtime, etag=link_of(filename).partition(".")[0])
