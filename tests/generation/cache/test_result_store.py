"""One contract over both stores of known results: bounds, age, leases. Redis is a real server."""

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
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Library:
    """A store, its clock, and short words for what tests do again and again."""

    store: ResultStore
    clock: Clock
    open_another: Callable[[], ResultStore]  # on the same results, as another process would

    def keep(self, key: str, filename: str | None = None) -> list[str]:
        return self.store.keep(key, result(filename or f"{key}.wav"))

    def known(self, *keys: str) -> list[str]:
        self.clock.now += 1
        return [key for key in keys if self.store.find(key) is not None]


def result(filename: str) -> CachedResult:
    return CachedResult(filename, {"seed": 7, "recipe": {"prompt": "\ud800 🎵 \x00", "melody": None, "top_p": 0.1}})


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def library(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Library]:
    clock = Clock()
    opened: list[SqliteFile | RedisClient] = []
    prefix = f"{{{uuid.uuid4()}}}:"
    bounds: dict[str, Any] = {"max_entries": MAX_ENTRIES, "max_age_seconds": MAX_AGE_SECONDS, "clock": clock}

    def open_store() -> ResultStore:
        if request.param == "sqlite":
            file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
            opened.append(file)
            return SqliteResultStore(file, **bounds)
        server: RedisServer = request.getfixturevalue("redis_server")
        client = RedisClient(server.url, "state store")
        opened.append(client)
        return RedisResultStore(client, prefix=prefix, **bounds)

    yield Library(open_store(), clock, open_store)
    for state in opened:
        state.close()


def test_what_is_kept_is_found_as_it_was_by_every_process(library: Library) -> None:
    assert library.store.find("a") is None
    assert library.keep("a") == []
    for store in (library.store, library.open_another()):
        assert store.find("a") == result("a.wav")
        assert store.find("b") is None


def test_beyond_the_bound_the_least_recently_used_goes_and_its_file_is_told(library: Library) -> None:
    names = [f"key{number}" for number in range(MAX_ENTRIES)]
    for name in names:
        library.clock.now += 1
        assert library.keep(name) == []
    assert library.known("key0") == ["key0"]
    library.clock.now += 1
    assert library.keep("new") == ["key1.wav"]
    assert library.known("new", *names) == ["new", "key0", "key2", "key3", "key4"]


def test_a_smaller_bound_holds_for_what_is_there(library: Library) -> None:
    for number in range(MAX_ENTRIES):
        library.clock.now += 1
        library.keep(f"key{number}")
    smaller = library.open_another()
    smaller._max_entries = 2  # type: ignore[attr-defined]
    library.clock.now += 1
    assert sorted(smaller.keep("new", result("new.wav"))) == [f"key{number}.wav" for number in range(MAX_ENTRIES - 1)]


def test_what_is_too_old_is_not_found_and_goes_with_the_next_one(library: Library) -> None:
    library.keep("old")
    library.clock.now += MAX_AGE_SECONDS / 2
    assert library.known("old") == ["old"], "use does not make it younger"
    library.keep("young")
    library.clock.now += MAX_AGE_SECONDS / 2
    assert library.known("old", "young") == ["young"]
    assert library.keep("new") == ["old.wav"]


def test_a_result_that_is_made_again_takes_the_place_of_the_first(library: Library) -> None:
    library.keep("a", "first.wav")
    assert library.keep("a", "second.wav") == ["first.wav"]
    assert library.store.find("a") == result("second.wav")


def test_a_result_is_forgotten_by_its_file(library: Library) -> None:
    library.keep("a", "second.wav")
    library.store.forget("a", "first.wav")
    assert library.known("a") == ["a"]
    library.store.forget("a", "second.wav")
    library.store.forget("a", "second.wav")
    assert library.known("a") == []
    assert library.keep("a") == []


def test_a_lease_is_one_holders_until_it_lets_go(library: Library) -> None:
    other = library.open_another()
    assert library.store.lease("a", "me", 10)
    assert not other.lease("a", "you", 10)
    assert other.lease("b", "you", 10)
    other.release("a", "you")
    assert not other.lease("a", "you", 10)
    library.store.release("a", "me")
    assert other.lease("a", "you", 10)
    library.store.release("a", "me")
    assert not library.store.lease("a", "me", 10)


def test_a_lease_that_is_not_renewed_ends(library: Library) -> None:
    assert library.store.lease("a", "me", 10)
    library.clock.now += 9
    assert library.store.lease("a", "me", 10), "renewed"
    library.clock.now += 9
    assert not library.store.lease("a", "you", 10)
    library.clock.now += 2
    assert library.store.lease("a", "you", 10)


def test_many_at_once_get_one_lease(library: Library) -> None:
    stores = [library.open_another() for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: stores[number % 4].lease("a", str(number), 10), range(40)))
    assert sum(won) == 1


def test_leases_of_holders_that_died_leave_no_rows(tmp_path: Path) -> None:
    clock = Clock()
    file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
    store = SqliteResultStore(file, max_entries=5, max_age_seconds=10, clock=clock)
    for number in range(3):
        store.lease(str(number), "me", 10)
    clock.now += 11
    store.keep("a", result("a.wav"))
    with file.read() as db:
        assert db.execute("SELECT count(*) FROM result_leases").fetchone()[0] == 0
    file.close()


def test_a_clock_that_was_set_back_holds_nobody(tmp_path: Path) -> None:
    clock = Clock()
    file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
    store = SqliteResultStore(file, max_entries=5, max_age_seconds=10, clock=clock)
    assert store.lease("a", "me", 10)
    clock.now -= 3600
    assert store.lease("a", "you", 10)
    file.close()


def test_a_redis_that_is_away_is_storage_unavailable(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    client = RedisClient(server.url, "state store", timeout_seconds=1.0)
    store = RedisResultStore(client, max_entries=5, max_age_seconds=10)
    store.keep("a", result("a.wav"))
    server.kill()
    with pytest.raises(StorageUnavailable):
        store.find("a")
    client.close()
