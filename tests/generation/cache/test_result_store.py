"""The contract that both stores of cached results satisfy: limits, age, leases. Redis is a real server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.generation.cache.base import CachedResult, ResultStore
from audiocraft_api.generation.cache.redis import RedisResultStore
from audiocraft_api.generation.cache.sqlite import SqliteResultStore
from audiocraft_api.state import schema
from audiocraft_api.state.redis import RedisClient
from audiocraft_api.state.sqlite import SqliteFile
from support.redis_server import RedisServer

MAX_ENTRIES = 5
MAX_AGE_SECONDS = 100.0


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class StoreUnderTest:
    """A store, its clock, and shorthands for its methods."""

    store: ResultStore
    clock: Clock
    open_another: Callable[..., ResultStore]  # over the same results, as another process would

    def put(self, key: str, filename: str | None = None) -> list[str]:
        return self.store.put(key, result(filename or f"{key}.wav"))

    def cached(self, *keys: str) -> list[str]:
        """Return which keys are cached, a second later."""
        self.clock.now += 1
        return [key for key in keys if self.store.get(key) is not None]


def result(filename: str) -> CachedResult:
    return CachedResult(filename, {"seed": 7, "recipe": {"prompt": "\ud800 🎵 \x00", "melody": None, "top_p": 0.1}})


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreUnderTest]:
    clock = Clock()
    opened: list[SqliteFile | RedisClient] = []
    prefix = f"{{{uuid.uuid4()}}}:"
    bounds: dict[str, Any] = {"max_entries": MAX_ENTRIES, "max_age_seconds": MAX_AGE_SECONDS, "clock": clock}

    def open_store(**changed: Any) -> ResultStore:
        if request.param == "sqlite":
            file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
            opened.append(file)
            return SqliteResultStore(file, **bounds | changed)
        server: RedisServer = request.getfixturevalue("redis_server")
        client = RedisClient(server.url, "state store")
        opened.append(client)
        return RedisResultStore(client, prefix=prefix, **bounds | changed)

    yield StoreUnderTest(open_store(), clock, open_store)
    for state in opened:
        state.close()


def test_every_process_reads_a_result_as_it_was_stored(results: StoreUnderTest) -> None:
    assert results.store.get("a") is None
    assert results.put("a") == []
    for store in (results.store, results.open_another()):
        assert store.get("a") == result("a.wav")
        assert store.get("b") is None


def test_beyond_the_limit_the_least_recently_used_result_is_dropped_and_its_file_returned(
    results: StoreUnderTest,
) -> None:
    names = [f"key{number}" for number in range(MAX_ENTRIES)]
    for name in names:
        results.clock.now += 1
        assert results.put(name) == []
    assert results.cached("key0") == ["key0"]
    results.clock.now += 1
    assert results.put("new") == ["key1.wav"]
    assert results.cached("new", *names) == ["new", "key0", "key2", "key3", "key4"]


def test_a_smaller_limit_applies_to_earlier_results(results: StoreUnderTest) -> None:
    for number in range(MAX_ENTRIES):
        results.clock.now += 1
        results.put(f"key{number}")
    smaller = results.open_another(max_entries=2)
    results.clock.now += 1
    assert sorted(smaller.put("new", result("new.wav"))) == [f"key{number}.wav" for number in range(MAX_ENTRIES - 1)]


def test_an_old_result_is_not_returned_and_the_next_put_drops_it(results: StoreUnderTest) -> None:
    results.put("old")
    results.clock.now += MAX_AGE_SECONDS / 2
    assert results.cached("old") == ["old"], "use does not extend its lifetime"
    results.put("young")
    results.clock.now += MAX_AGE_SECONDS / 2
    assert results.cached("old", "young") == ["young"]
    assert results.put("new") == ["old.wav"]


def test_a_second_result_replaces_the_first(results: StoreUnderTest) -> None:
    results.put("a", "first.wav")
    assert results.put("a", "second.wav") == ["first.wav"]
    assert results.store.get("a") == result("second.wav")


def test_a_result_is_deleted_only_with_its_own_file(results: StoreUnderTest) -> None:
    results.put("a", "second.wav")
    results.store.delete("a", "first.wav")
    assert results.cached("a") == ["a"]
    results.store.delete("a", "second.wav")
    results.store.delete("a", "second.wav")
    assert results.cached("a") == []
    assert results.put("a") == []


def test_a_lease_has_one_holder_until_it_is_released(results: StoreUnderTest) -> None:
    other = results.open_another()
    assert results.store.lease("a", "me", 10)
    assert not other.lease("a", "you", 10)
    assert other.lease("b", "you", 10)
    other.release("a", "you")
    assert not other.lease("a", "you", 10)
    results.store.release("a", "me")
    assert other.lease("a", "you", 10)
    results.store.release("a", "me")
    assert not results.store.lease("a", "me", 10)


def test_a_lease_that_is_not_renewed_ends(results: StoreUnderTest) -> None:
    assert results.store.lease("a", "me", 10)
    results.clock.now += 9
    assert results.store.lease("a", "me", 10), "renewed"
    results.clock.now += 9
    assert not results.store.lease("a", "you", 10)
    results.clock.now += 2
    assert results.store.lease("a", "you", 10)


def test_one_of_many_concurrent_requests_acquires_the_lease(results: StoreUnderTest) -> None:
    stores = [results.open_another() for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: stores[number % 4].lease("a", str(number), 10), range(40)))
    assert sum(won) == 1


def test_expired_leases_leave_no_rows(tmp_path: Path) -> None:
    clock = Clock()
    file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
    store = SqliteResultStore(file, max_entries=5, max_age_seconds=10, clock=clock)
    for number in range(3):
        store.lease(str(number), "me", 10)
    clock.now += 11
    store.put("a", result("a.wav"))
    with file.read() as db:
        assert db.execute("SELECT count(*) FROM result_leases").fetchone()[0] == 0
    file.close()


def test_a_lease_from_before_the_clock_was_set_back_is_expired(tmp_path: Path) -> None:
    clock = Clock()
    file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
    store = SqliteResultStore(file, max_entries=5, max_age_seconds=10, clock=clock)
    assert store.lease("a", "me", 10)
    clock.now -= 3600
    assert store.lease("a", "you", 10)
    file.close()


def test_an_unreachable_redis_raises_storage_unavailable(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    client = RedisClient(server.url, "state store", timeout_seconds=1.0)
    store = RedisResultStore(client, max_entries=5, max_age_seconds=10)
    store.put("a", result("a.wav"))
    server.kill()
    with pytest.raises(StorageUnavailable):
        store.get("a")
    client.close()
