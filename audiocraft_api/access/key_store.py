"""Stores of API keys in SQLite and in Redis. They contain hashes of keys, never the keys.

Keys are added and revoked, but never deleted: a store that once had a key must not look like a store without keys,
which would disable authentication.
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
    """Stores keys. Thread-safe. Every method raises StorageUnavailable."""

    def add(self, key: ApiKey) -> None:
        """Add a key. Raises ValueError if its id already exists."""

    def revoke(self, key_id: str, now: float) -> ApiKey | None:
        """Revoke a key and return it; return None for an unknown id. Does not change a key that is already revoked."""

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first."""

    def version(self) -> int:
        """Return a number that grows with every change; 0 until the first key is added. Cheap to call."""


class SqliteKeyStore:
    """Keys in a SQLite file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def add(self, key: ApiKey) -> None:
        with self._file.write() as db:
            if db.execute("SELECT 1 FROM api_keys WHERE id = ?", (key.id,)).fetchone():
                raise ValueError(f"key {key.id} already exists")
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
    """Keys in a Redis that all servers share: a hash of rows by id, and a key for the version."""

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self._client = client
        self._rows = prefix + "api_keys"
        self._version = prefix + "api_keys_version"

    def add(self, key: ApiKey) -> None:
        if not self._client.run(REDIS_ADD, [self._rows, self._version], [key.id, json.dumps(_row(key))]):
            raise ValueError(f"key {key.id} already exists")

    def revoke(self, key_id: str, now: float) -> ApiKey | None:
        with self._client.commands() as client:
            before = client.hget(self._rows, key_id)
        key = _key(json.loads(before)) if before else None
        if key is None or key.revoked is not None:
            return key
        revoked = replace(key, revoked=now)
        # Does nothing if another process has just revoked the key; the key is revoked either way.
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
