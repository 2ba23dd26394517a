"""Cached results in one machine's state file, which its processes share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from audiocraft_api.generation.cache.base import CachedResult
from audiocraft_api.state.sqlite import SqliteFile

GET = "UPDATE results SET used = :now WHERE key = :key AND created > :oldest RETURNING filename, answer"
PUT = """
INSERT INTO results (key, filename, answer, created, used) VALUES (:key, :filename, :answer, :now, :now)
"""
EXPIRE = "DELETE FROM results WHERE key = :key OR created <= :oldest RETURNING filename"
EVICT = """
DELETE FROM results WHERE key IN (SELECT key FROM results ORDER BY used DESC, key LIMIT -1 OFFSET :max_entries)
RETURNING filename
"""
# If the clock was set back, a lease that ends further ahead than it is long counts as expired.
LEASE = """
INSERT INTO result_leases (key, holder, held_until, seconds) VALUES (:key, :holder, :now + :seconds, :seconds)
ON CONFLICT (key) DO UPDATE SET holder = :holder, held_until = :now + :seconds, seconds = :seconds
WHERE holder = :holder OR held_until <= :now OR held_until > :now + result_leases.seconds RETURNING key
"""


class SqliteResultStore:
    """A `ResultStore` in one file. Writes are not synced to disk: results lost in a power failure are made again."""

    def __init__(
        self, file: SqliteFile, *, max_entries: int, max_age_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._max_entries = max_entries
        self._max_age_seconds = max_age_seconds
        self._clock = clock

    def get(self, key: str) -> CachedResult | None:
        with self._file.write(durable=False) as db:
            now = self._clock()
            row = db.execute(GET, {"key": key, "now": now, "oldest": now - self._max_age_seconds}).fetchone()
        return CachedResult(row["filename"], json.loads(row["answer"])) if row else None

    def put(self, key: str, result: CachedResult) -> list[str]:
        row = {"key": key, "filename": result.filename, "answer": json.dumps(result.recipe)}
        with self._file.write(durable=False) as db:
            now = self._clock()
            gone = db.execute(EXPIRE, {"key": key, "oldest": now - self._max_age_seconds}).fetchall()
            db.execute(PUT, row | {"now": now})
            gone += db.execute(EVICT, {"max_entries": self._max_entries}).fetchall()
            db.execute("DELETE FROM result_leases WHERE held_until <= ?", (now,))  # of killed processes
        return [row["filename"] for row in gone]

    def delete(self, key: str, filename: str) -> None:
        with self._file.write(durable=False) as db:
            db.execute("DELETE FROM results WHERE key = ? AND filename = ?", (key, filename))

    def lease(self, key: str, holder: str, seconds: float) -> bool:
        with self._file.write(durable=False) as db:
            # Read the clock after the wait for the write lock: an older time would make another holder's new lease
            # look too far ahead, and thus expired.
            lease = {"key": key, "holder": holder, "now": self._clock(), "seconds": seconds}
            return db.execute(LEASE, lease).fetchone() is not None

    def release(self, key: str, holder: str) -> None:
        with self._file.write(durable=False) as db:
            db.execute("DELETE FROM result_leases WHERE key = ? AND holder = ?", (key, holder))
