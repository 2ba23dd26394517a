"""Daily usage of each owner, in SQLite and in Redis.

A charge is one atomic update, so that two requests cannot both use the last part of a quota. Audio is counted in whole
milliseconds because sums of fractions would not be exact. Days are counted from 1970 in UTC; usage from before
yesterday is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from audiocraft_api.state.sqlite import SqliteFile

if TYPE_CHECKING:
    from audiocraft_api.state.redis import RedisClient

DAY_SECONDS = 86_400

CHARGE = """
INSERT INTO quotas (day, owner, requests, milliseconds) SELECT :day, :owner, :requests, :milliseconds
WHERE (:max_milliseconds = 0 OR :milliseconds <= :max_milliseconds)
ON CONFLICT (day, owner) DO UPDATE
SET requests = requests + :requests, milliseconds = milliseconds + excluded.milliseconds
WHERE (:max_requests = 0 OR requests + :requests <= :max_requests)
AND (:max_milliseconds = 0 OR milliseconds + excluded.milliseconds <= :max_milliseconds)
RETURNING requests, milliseconds
"""
REFUND = """
UPDATE quotas SET requests = max(requests - :requests, 0), milliseconds = max(milliseconds - :milliseconds, 0)
WHERE day = :day AND owner = :owner
"""
USAGE = "SELECT requests, milliseconds FROM quotas WHERE day = ? AND owner = ?"
SWEEP = "DELETE FROM quotas WHERE day < ?"

REDIS_CHARGE = """
local requests = tonumber(redis.call('HGET', KEYS[1], 'requests') or 0)
local milliseconds = tonumber(redis.call('HGET', KEYS[1], 'milliseconds') or 0)
local more, max_requests, max_milliseconds = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local more_requests = tonumber(ARGV[5])
if (max_requests > 0 and requests + more_requests > max_requests)
    or (max_milliseconds > 0 and milliseconds + more > max_milliseconds) then
    return {0, requests, milliseconds}
end
redis.call('HSET', KEYS[1], 'requests', requests + more_requests, 'milliseconds', milliseconds + more)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {1, requests + more_requests, milliseconds + more}
"""
REDIS_REFUND = """
local requests = tonumber(redis.call('HGET', KEYS[1], 'requests') or 0)
if requests == 0 then return end
requests = math.max(requests - tonumber(ARGV[2]), 0)
local milliseconds = tonumber(redis.call('HGET', KEYS[1], 'milliseconds'))
redis.call('HSET', KEYS[1], 'requests', requests, 'milliseconds', math.max(milliseconds - ARGV[1], 0))
"""


@dataclass(frozen=True)
class Usage:
    """Usage of an owner on a day. `is_charged`: whether the requested charge was within the quota and is included."""

    requests: int
    seconds: float
    is_charged: bool = False


class QuotaStore(Protocol):
    """Counts requests and seconds of audio. Thread-safe. Every method raises StorageUnavailable."""

    def charge(
        self, owner: str, day: int, seconds: float, *, max_requests: int, max_seconds: int, num_requests: int = 1
    ) -> Usage:
        """Charge a request for `seconds` of audio unless that would exceed a maximum (0: no maximum).

        `num_requests` 0 charges further audio of an earlier request.
        """

    def refund(self, owner: str, day: int, seconds: float, num_requests: int = 1) -> None:
        """Undo a charge. Counts never go below 0."""

    def usage(self, owner: str, day: int) -> Usage:
        """Return the usage of an owner on a day."""


class SqliteQuotaStore:
    """Counts in a SQLite file. A power cut may lose the last charges, in the owners' favor."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def charge(
        self, owner: str, day: int, seconds: float, *, max_requests: int, max_seconds: int, num_requests: int = 1
    ) -> Usage:
        maxima = {"max_requests": max_requests, "max_milliseconds": max_seconds * 1000}
        values = {"owner": owner, "day": day, "milliseconds": _milliseconds(seconds), "requests": num_requests} | maxima
        with self._file.write(durable=False) as db:
            db.execute(SWEEP, (day - 1,))
            row = db.execute(CHARGE, values).fetchone()
            if row:
                return Usage(row["requests"], row["milliseconds"] / 1000, is_charged=True)
            row = db.execute(USAGE, (day, owner)).fetchone()
        return Usage(row["requests"], row["milliseconds"] / 1000) if row else Usage(0, 0.0)

    def refund(self, owner: str, day: int, seconds: float, num_requests: int = 1) -> None:
        values = {"owner": owner, "day": day, "milliseconds": _milliseconds(seconds), "requests": num_requests}
        with self._file.write(durable=False) as db:
            db.execute(REFUND, values)

    def usage(self, owner: str, day: int) -> Usage:
        with self._file.read() as db:
            row = db.execute(USAGE, (day, owner)).fetchone()
        return Usage(row["requests"], row["milliseconds"] / 1000) if row else Usage(0, 0.0)


class RedisQuotaStore:
    """Usage in a Redis that all servers share: one hash for each owner and day, which expires."""

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix + "quota:"

    def charge(
        self, owner: str, day: int, seconds: float, *, max_requests: int, max_seconds: int, num_requests: int = 1
    ) -> Usage:
        arguments = [_milliseconds(seconds), max_requests, max_seconds * 1000, 2 * DAY_SECONDS, num_requests]
        is_charged, requests, milliseconds = self._client.run(REDIS_CHARGE, [self._key(owner, day)], arguments)
        return Usage(requests, milliseconds / 1000, bool(is_charged))

    def refund(self, owner: str, day: int, seconds: float, num_requests: int = 1) -> None:
        self._client.run(REDIS_REFUND, [self._key(owner, day)], [_milliseconds(seconds), num_requests])

    def usage(self, owner: str, day: int) -> Usage:
        with self._client.commands() as client:
            requests, milliseconds = client.hmget(self._key(owner, day), "requests", "milliseconds")
        return Usage(int(requests or 0), int(milliseconds or 0) / 1000)

    def _key(self, owner: str, day: int) -> str:
        return f"{self._prefix}{day}:{owner}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
