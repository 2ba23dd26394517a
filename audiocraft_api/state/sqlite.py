"""One SQLite file: its two connections, its one write transaction at a time, and its errors as StorageUnavailable.

WAL with `synchronous=FULL`: what has been committed survives a power cut. One lock per process lets its threads write
in the order of their coming, since SQLite's own waiting is unfair: of 32 writing threads some waited for a second. A
damaged file is neither moved nor replaced: accepted tasks are in it, and an operator decides. Until then every use
raises StorageUnavailable and the rest of the service goes on. Knows nothing of what is kept.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from audiocraft_api.core.errors import StorageUnavailable

WAL_BYTES = 64 * 2**20  # what the write-ahead log is cut back to after a burst of large tunes
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
MESSAGES = {
    sqlite3.SQLITE_BUSY: "The {name} is busy; try again later.",
    sqlite3.SQLITE_LOCKED: "The {name} is busy; try again later.",
    sqlite3.SQLITE_FULL: "There is no room left in the {name}; try again later.",
}
DAMAGED_MESSAGE = "The {name} is damaged and waits for an operator; it cannot be used until then."
DEFAULT_MESSAGE = "The {name} cannot be used now; try again later."
DAMAGED_REMEDY = (
    " The file is damaged and left as it is. Stop the server, keep a copy of it and its -wal, then restore a backup,"
    " rescue its rows with `sqlite3 FILE .recover`, or move it away to begin with an empty one."
)

logger = logging.getLogger(__name__)


class FairLock:
    """A lock that goes to whoever has waited longest; `threading.Lock` goes to anyone, and lets some wait for long."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._turns: deque[threading.Lock] = deque()
        self._held = False

    def acquire(self, timeout: float = -1) -> bool:
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._turns.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._mutex:
            if turn in self._turns:
                self._turns.remove(turn)
                return False
        return True  # it was handed over just now

    def release(self) -> None:
        with self._mutex:
            if self._turns:
                self._turns.popleft().release()  # still held, by the next
            else:
                self._held = False


@dataclass(frozen=True)
class Layout:
    """What is in a file: its `name` for people, its tables, and what brings those of older versions up to date."""

    name: str
    version: int
    tables: str  # statements, separated by semicolons
    migrations: dict[int, str] = field(default_factory=dict)  # statements, from a version to the next one


class SqliteFile:
    """Opens with its first use, so that no connection crosses a fork."""

    def __init__(self, path: Path, layout: Layout, busy_seconds: float = 5.0) -> None:
        self._path = path
        self._layout = layout
        self._busy_seconds = busy_seconds
        self._write_lock = FairLock()
        self._read_lock = threading.Lock()
        self._open_lock = threading.Lock()
        self._connections: tuple[sqlite3.Connection, sqlite3.Connection] | None = None  # writer, reader
        self._closed = False
        self._damaged = False
        self._failing = False

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold this process's one write transaction; any error rolls it back. Raises StorageUnavailable."""
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
        """Read what is committed; waits for no writer. Raises StorageUnavailable."""
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
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension bits
            self._damaged = self._damaged or code in DAMAGED
            if not self._failing:  # once, not for each of a thousand requests
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
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # prompts are nobody else's to read
                writer = self._connect()
                try:
                    _prepare(writer, self._layout, self._busy_seconds)
                    self._connections = writer, self._connect()
                finally:
                    if self._connections is None:
                        writer.close()
            return self._connections

    def _unavailable(self, message: str) -> StorageUnavailable:
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
    """Check the file and make the tables where they are missing. Raises sqlite3.Error."""
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
            raise sqlite3.DatabaseError(f"its layout is {version}, of another release; this one knows {layout.version}")
        db.execute(f"PRAGMA user_version = {layout.version}")


def _switch_to_wal(db: sqlite3.Connection, busy_seconds: float) -> None:
    """Write ahead. When several open a new file at once, SQLite refuses all but one without waiting: so wait here."""
    until = time.monotonic() + busy_seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
        time.sleep(0.01)
