"""Cached results in a Redis server that several hosts share. Each change is a Lua script that uses the server's clock.

Keys: `results`, a hash of rows by result key; a row is a filename, a line break and the recipe as JSON. Lua never
parses that JSON, because its parser fails on lone surrogates. `results_used` and `results_created` are sorted sets of
result keys by time. `result_lease:<key>` is a hash with the lease's holder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from audiocraft_api.generation.cache.base import CachedResult
from audiocraft_api.state.redis import PREFIX, RedisClient

PRELUDE = """
local function key(name) return KEYS[1] .. name end
local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local now = clock()
local rows, used, created = key('results'), key('results_used'), key('results_created')
local function remove(id)
  local row = redis.call('HGET', rows, id)
  redis.call('HDEL', rows, id)
  redis.call('ZREM', used, id)
  redis.call('ZREM', created, id)
  return row
end
"""
GET = """
local id, oldest = ARGV[2], now - tonumber(ARGV[3])
local made = redis.call('ZSCORE', created, id)
if not made or tonumber(made) <= oldest then return false end
redis.call('ZADD', used, now, id)
return redis.call('HGET', rows, id)
"""
PUT = """
local id, oldest, max_entries = ARGV[2], now - tonumber(ARGV[3]), tonumber(ARGV[4])
local gone = {remove(id) or nil}
for _, old in ipairs(redis.call('ZRANGEBYSCORE', created, '-inf', oldest)) do gone[#gone + 1] = remove(old) end
redis.call('HSET', rows, id, ARGV[5])
redis.call('ZADD', used, now, id)
redis.call('ZADD', created, now, id)
local excess = redis.call('ZCARD', used) - max_entries
if excess > 0 then
  for _, old in ipairs(redis.call('ZRANGE', used, 0, excess - 1)) do gone[#gone + 1] = remove(old) end
end
return gone
"""
DELETE = r"""
local row = redis.call('HGET', rows, ARGV[2])
if row and string.match(row, '^[^\n]*') == ARGV[3] then remove(ARGV[2]) end
"""
LEASE = """
local lease, holder, seconds = key('result_lease:' .. ARGV[2]), ARGV[3], tonumber(ARGV[4])
local held = redis.call('HMGET', lease, 'holder', 'held_until')
if held[1] and held[1] ~= holder and tonumber(held[2]) > now then return 0 end
redis.call('HSET', lease, 'holder', holder, 'held_until', string.format('%.6f', now + seconds))
redis.call('PEXPIRE', lease, math.ceil(seconds * 1000))
return 1
"""
RELEASE = """
local lease = key('result_lease:' .. ARGV[2])
if redis.call('HGET', lease, 'holder') == ARGV[3] then redis.call('DEL', lease) end
"""


class RedisResultStore:
    """A `ResultStore` under keys that begin with `prefix`. Tests pass a `clock` to replace the server's."""

    def __init__(
        self,
        client: RedisClient,
        *,
        max_entries: int,
        max_age_seconds: float,
        prefix: str = PREFIX,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._max_entries = max_entries
        self._max_age_seconds = max_age_seconds
        self._prefix = prefix
        self._clock = clock

    def get(self, key: str) -> CachedResult | None:
        row = self._run(GET, key, self._max_age_seconds)
        if not row:
            return None
        filename, _, recipe = row.decode().partition("\n")
        return CachedResult(filename, json.loads(recipe))

    def put(self, key: str, result: CachedResult) -> list[str]:
        row = f"{result.filename}\n{json.dumps(result.recipe)}"
        gone = self._run(PUT, key, self._max_age_seconds, self._max_entries, row)
        return [row.decode().partition("\n")[0] for row in gone]

    def delete(self, key: str, filename: str) -> None:
        self._run(DELETE, key, filename)

    def lease(self, key: str, holder: str, seconds: float) -> bool:
        return bool(self._run(LEASE, key, holder, seconds))

    def release(self, key: str, holder: str) -> None:
        self._run(RELEASE, key, holder)

    def _run(self, script: str, *arguments: Any) -> Any:
        now = "" if self._clock is None else repr(self._clock())
        return self._client.run(PRELUDE + script, [self._prefix], [now, *arguments])
