"""One SQLite file: two connections, one write transaction at a time, and StorageUnavailable for SQLite errors.

The file uses WAL with `synchronous=FULL`, so that committed data survives a power cut. One lock per process lets its
threads write in order of arrival, because SQLite's own waiting is unfair: of 32 writing threads, some waited for a
second. A damaged file is neither moved nor replaced: it contains accepted tasks, so an operator must decide what to do.
Until then, every use raises StorageUnavailable, while the rest of the service works. Knows nothing of the stored data.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from audiocraft_api.core.errors import StorageUnavailable

WAL_BYTES = 64 * 2**20  # size to which the write-ahead log is truncated after a burst of large writes
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
MESSAGES = {
    sqlite3.SQLITE_BUSY: "The {name} is busy. Try again later.",
    sqlite3.SQLITE_LOCKED: "The {name} is busy. Try again later.",
    sqlite3.SQLITE_FULL: "The disk of the {name} is full. Try again later.",
}
DAMAGED_MESSAGE = "The {name} is damaged and cannot be used until an operator has repaired it."
DEFAULT_MESSAGE = "The {name} is unavailable. Try again later."
DAMAGED_REMEDY = (
    " The file is damaged and was left unchanged. Stop the server, copy the file and its -wal, then restore a backup,"
    " recover the rows with `sqlite3 FILE .recover`, or move the file away to start with an empty one."
)

logger = logging.getLogger(__name__)


class FairLock:
    """A first-in, first-out lock. `threading.Lock` is not fair, so some threads could wait for a very long time."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiters: deque[threading.Lock] = deque()
        self._held = False

    def acquire(self, timeout: float = -1) -> bool:
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            waiter = threading.Lock()  # locked until the lock is passed to this thread
            waiter.acquire()
            self._waiters.append(waiter)
        if waiter.acquire(timeout=timeout):
            return True
        with self._mutex:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                return False
        return True  # the lock was passed to this thread just after the timeout

    def release(self) -> None:
        with self._mutex:
            if self._waiters:
                self._waiters.popleft().release()  # the lock stays held: it now belongs to the next thread
            else:
                self._held = False


@dataclass(frozen=True)
class Layout:
    """The content of a file: its `name` for messages, its tables, and the migrations from older versions."""

    name: str
    version: int
    tables: str  # statements, separated by semicolons
    migrations: dict[int, str] = field(default_factory=dict)  # by version: statements that migrate to the next version


class SqliteFile:
    """Opens the file on first use, so that no connection crosses a fork. Thread-safe."""

    def __init__(
        self, path: Path, layout: Layout, busy_seconds: float = 5.0, on_unavailable: Callable[[], None] | None = None
    ) -> None:
        self._path = path
        self._layout = layout
        self._busy_seconds = busy_seconds
        self._on_unavailable = on_unavailable
        self._write_lock = FairLock()
        self._read_lock = threading.Lock()
        self._open_lock = threading.Lock()
        self._connections: tuple[sqlite3.Connection, sqlite3.Connection] | None = None  # writer, reader
        self._closed = False
        self._damaged = False
        self._failing = False

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Run the block in a write transaction, one at a time per process; errors roll back. Raises StorageUnavailable.

        A transaction that is not `durable` may be lost in a power cut, but never corrupts the file.
        """
        if not self._write_lock.acquire(timeout=self._busy_seconds):
            raise self._unavailable(MESSAGES[sqlite3.SQLITE_BUSY])
        try:
            with self._translated_errors():
                db, _ = self._open()
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                with _transaction(db):
                    yield db
        finally:
            self._write_lock.release()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read committed data without waiting for writers. Raises StorageUnavailable."""
        with self._read_lock, self._translated_errors():
            yield self._open()[1]

    def close(self) -> None:
        self._write_lock.acquire()
        with self._read_lock, self._open_lock:
            self._closed = True
            for connection in self._connections or ():
                connection.close()
            self._connections = None
        self._write_lock.release()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
            self._failing = False
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended code
            self._damaged = self._damaged or code in DAMAGED
            if not self._failing:  # log once per outage, not once per request
                self._failing = True
                remedy = DAMAGED_REMEDY if self._damaged else ""
                logger.error("The %s %s cannot be used: %s.%s", self._layout.name, self._path, error, remedy)
            message = DAMAGED_MESSAGE if self._damaged else MESSAGES.get(code, DEFAULT_MESSAGE)
            raise self._unavailable(message) from error

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        with self._open_lock:
            if self._closed:
                raise self._unavailable("The {name} is closed.")
            if self._damaged:
                raise self._unavailable(DAMAGED_MESSAGE)
            if self._connections is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                os.close(
                    os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
                )  # the file contains prompts, which are private
                writer = self._connect()
                try:
                    _prepare(writer, self._layout, self._busy_seconds)
                    self._connections = writer, self._connect()
                finally:
                    if self._connections is None:
                        writer.close()
            return self._connections

    def _unavailable(self, message: str) -> StorageUnavailable:
        if self._on_unavailable:
            self._on_unavailable()
        return StorageUnavailable(message.format(name=self._layout.name))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _prepare(db: sqlite3.Connection, layout: Layout, busy_seconds: float) -> None:
    """Check the file, and create or migrate its tables. Raises sqlite3.Error."""
    for (finding,) in db.execute("PRAGMA quick_check(1)"):
        if finding != "ok":
            error = sqlite3.DatabaseError(finding)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
    _switch_to_wal(db, busy_seconds)
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    with _transaction(db):
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in layout.tables.split(";"):
                db.execute(statement)
            version = layout.version
        while version in layout.migrations:
            for statement in layout.migrations[version].split(";"):
                db.execute(statement)
            version += 1
        if version != layout.version:
            raise sqlite3.DatabaseError(f"its layout version is {version}, but this release needs {layout.version}")
        db.execute(f"PRAGMA user_version = {layout.version}")


def _switch_to_wal(db: sqlite3.Connection, busy_seconds: float) -> None:
    """Switch to WAL. If processes open a new file at the same time, SQLite fails at once in all but one, so retry."""
    until = time.monotonic() + busy_seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
        time.sleep(0.01)
