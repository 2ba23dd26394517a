"""Where API keys are kept: one interface, and its forms in SQLite and in Redis. No key is here, only hashes of keys.

Keys are added and revoked, never changed otherwise and never deleted, so that a store which once had a key never looks
like one that has none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

from audiocraft_api.access.api_key import ApiKey
from audiocraft_api.access.caller import CallerLimits
from audiocraft_api.state.sqlite import SqliteFile

if TYPE_CHECKING:
    from audiocraft_api.state.redis import RedisClient

ADD = """
INSERT INTO api_keys (id, hash, name, scopes, limits, created, expires, revoked)
VALUES (:id, :hash, :name, :scopes, :limits, :created, :expires, :revoked)
"""
REVOKE = "UPDATE api_keys SET revoked = :now WHERE id = :id AND revoked IS NULL"
VERSION = "SELECT count(*) + count(revoked) FROM api_keys"

REDIS_ADD = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
return redis.call('INCR', KEYS[2])
"""
REDIS_REVOKE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return redis.call('INCR', KEYS[2])
"""


class KeyStore(Protocol):
    """Keeps what is known of keys. Thread-safe; everything raises StorageUnavailable."""

    def add(self, key: ApiKey) -> None:
        """Keep a key. Raises ValueError for an id that is there."""

    def revoke(self, key_id: str, now: float) -> ApiKey | None:
        """Revoke a key, and return it; one that was revoked stays as it is. None for an unknown id."""

    def all(self) -> list[ApiKey]:
        """Return all keys, the oldest first."""

    def version(self) -> int:
        """Return a number that grows with every change; 0 while there has never been a key. Quick."""


class SqliteKeyStore:
    """Keys in a file of this machine."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def add(self, key: ApiKey) -> None:
        with self._file.write() as db:
            if db.execute("SELECT 1 FROM api_keys WHERE id = ?", (key.id,)).fetchone():
                raise ValueError(f"there is a key {key.id}")
            db.execute(ADD, _row(key))

    def revoke(self, key_id: str, now: float) -> ApiKey | None:
        with self._file.write() as db:
            db.execute(REVOKE, {"id": key_id, "now": now})
            row = db.execute("SELECT * FROM api_keys WHERE id = ?", (key_id,)).fetchone()
        return _key(dict(row)) if row else None

    def all(self) -> list[ApiKey]:
        with self._file.read() as db:
            return [_key(dict(row)) for row in db.execute("SELECT * FROM api_keys ORDER BY created, id")]

    def version(self) -> int:
        with self._file.read() as db:
            return int(db.execute(VERSION).fetchone()[0])


class RedisKeyStore:
    """Keys in a Redis that all servers share: a hash of rows by id, and the version beside it."""

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self._client = client
        self._rows = prefix + "api_keys"
        self._version = prefix + "api_keys_version"

    def add(self, key: ApiKey) -> None:
        if not self._client.run(REDIS_ADD, [self._rows, self._version], [key.id, json.dumps(_row(key))]):
            raise ValueError(f"there is a key {key.id}")

    def revoke(self, key_id: str, now: float) -> ApiKey | None:
        with self._client.commands() as client:
            before = client.hget(self._rows, key_id)
        key = _key(json.loads(before)) if before else None
        if key is None or key.revoked is not None:
            return key
        revoked = replace(key, revoked=now)
        # Not carried out when somebody else has revoked it meanwhile, which is as good.
        self._client.run(REDIS_REVOKE, [self._rows, self._version], [key_id, before, json.dumps(_row(revoked))])
        return revoked

    def all(self) -> list[ApiKey]:
        with self._client.commands() as client:
            rows = client.hvals(self._rows)
        return sorted((_key(json.loads(row)) for row in rows), key=lambda key: (key.created, key.id))

    def version(self) -> int:
        with self._client.commands() as client:
            return int(client.get(self._version) or 0)


def _row(key: ApiKey) -> dict[str, Any]:
    limits = {name: value for name, value in asdict(key.limits).items() if value is not None}
    return {
        "id": key.id,
        "hash": key.hash,
        "name": key.name,
        "scopes": " ".join(sorted(key.scopes)),
        "limits": json.dumps(limits),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
    }


def _key(row: dict[str, Any]) -> ApiKey:
    scopes, limits = frozenset(row["scopes"].split()), CallerLimits(**json.loads(row["limits"]))
    return ApiKey(**row | {"scopes": scopes, "limits": limits})
