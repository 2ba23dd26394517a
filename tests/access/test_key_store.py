"""One contract over both key stores, and what a process knows of them. Redis is a real server."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from audiocraft_api.access.api_key import KEY, ApiKey, hash_of, id_of, matches, new_key
from audiocraft_api.access.caller import CallerLimits
from audiocraft_api.access.key_cache import FRESH_SECONDS, KeyCache
from audiocraft_api.access.key_store import KeyStore, RedisKeyStore, SqliteKeyStore
from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.state import schema
from audiocraft_api.state.redis import RedisClient
from audiocraft_api.state.sqlite import SqliteFile
from support.redis_server import RedisServer

NOW = 1_800_000_000.0


def a_key(**fields: object) -> ApiKey:
    made = new_key("a", frozenset({"generate"}), CallerLimits(), created=NOW)[1]
    return ApiKey(**vars(made) | fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@dataclass
class Cabinet:
    """A store, and a way to open another on the same keys, as another process would."""

    store: KeyStore
    open_another: Callable[[], KeyStore]


@pytest.fixture(params=["sqlite", "redis"])
def cabinet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cabinet]:
    opened: list[SqliteFile | RedisClient] = []
    prefix = f"{{{uuid.uuid4()}}}:"

    def open_store() -> KeyStore:
        if request.param == "sqlite":
            file = SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
            opened.append(file)
            return SqliteKeyStore(file)
        client = RedisClient(request.getfixturevalue("redis_server").url, "state store")
        opened.append(client)
        return RedisKeyStore(client, prefix)

    yield Cabinet(open_store(), open_store)
    for state in opened:
        state.close()


class TestContract:
    def test_a_key_is_read_back_whole_by_every_process(self, cabinet: Cabinet) -> None:
        limits = CallerLimits(requests_per_minute=0, requests_per_day=7, concurrent_requests=2)
        key = a_key(name="naïve 🎺", scopes=frozenset({"read", "admin"}), limits=limits, expires=NOW + 0.5)
        cabinet.store.add(key)
        assert cabinet.open_another().all() == [key]

    def test_keys_come_the_oldest_first(self, cabinet: Cabinet) -> None:
        keys = [a_key(created=NOW + seconds) for seconds in (3, 1, 2)]
        for key in keys:
            cabinet.store.add(key)
        assert cabinet.store.all() == sorted(keys, key=lambda key: key.created)

    def test_an_id_is_given_once(self, cabinet: Cabinet) -> None:
        key = a_key()
        cabinet.store.add(key)
        version = cabinet.store.version()
        with pytest.raises(ValueError, match=key.id):
            cabinet.store.add(a_key(id=key.id))
        assert (cabinet.store.all(), cabinet.store.version()) == ([key], version)

    def test_a_revoked_key_stays_with_the_time_of_its_first_revocation(self, cabinet: Cabinet) -> None:
        key = a_key()
        cabinet.store.add(key)
        revoked = cabinet.store.revoke(key.id, NOW + 1)
        assert revoked == a_key(**vars(key) | {"revoked": NOW + 1})
        assert cabinet.open_another().revoke(key.id, NOW + 2) == revoked
        assert cabinet.store.all() == [revoked]

    def test_an_unknown_id_revokes_nothing(self, cabinet: Cabinet) -> None:
        cabinet.store.add(a_key())
        version = cabinet.store.version()
        assert cabinet.store.revoke("nobody00", NOW) is None
        assert cabinet.store.version() == version

    def test_the_version_is_0_only_until_the_first_key_and_grows_with_every_change(self, cabinet: Cabinet) -> None:
        other = cabinet.open_another()
        versions = [other.version()]
        keys = [a_key(), a_key()]
        for key in keys:
            cabinet.store.add(key)
            versions.append(other.version())
        for key in keys:
            cabinet.store.revoke(key.id, NOW)
            versions.append(other.version())
        assert versions[0] == 0
        assert versions == sorted(set(versions))

    def test_keys_of_many_threads_are_all_kept(self, cabinet: Cabinet) -> None:
        keys = [a_key() for _ in range(32)]
        stores = [cabinet.store, cabinet.open_another()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda numbered: stores[numbered[0] % 2].add(numbered[1]), enumerate(keys)))
            list(pool.map(lambda key: stores[0].revoke(key.id, NOW), keys[:16]))
        assert {key.id: key.revoked for key in stores[1].all()} == {
            key.id: NOW if index < 16 else None for index, key in enumerate(keys)
        }
        assert stores[1].version() == 48


class TestKnownKeys:
    def test_changes_by_another_process_are_known_within_a_second(self, cabinet: Cabinet) -> None:
        known, other, key = KeyCache(cabinet.store), cabinet.open_another(), a_key()
        assert not known.any_key_created()
        for change, expected in (
            (lambda: other.add(key), key),
            (lambda: other.revoke(key.id, NOW), None),
        ):
            change()
            began, pause = time.monotonic(), threading.Event()
            while known.get(key.id) != expected:
                assert time.monotonic() - began < 1.0
                pause.wait(0.01)
        assert known.any_key_created()  # though its only key is revoked


def test_a_new_file_that_another_process_opens_at_the_same_time_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE begun (id)")
        other.execute("BEGIN IMMEDIATE")  # at which SQLite refuses to switch to a write-ahead log, without waiting
        leave = threading.Timer(0.2, other.execute, ("COMMIT",))
        leave.start()
        file = SqliteFile(path, schema.LAYOUT)
        assert SqliteKeyStore(file).version() == 0
        file.close()
        leave.join()


class CountingStore:
    """A store that counts how often it is asked, and fails when told to."""

    def __init__(self) -> None:
        self.keys: list[ApiKey] = []
        self.num_asked = 0
        self.is_away = False

    def version(self) -> int:
        self.num_asked += 1
        if self.is_away:
            raise StorageUnavailable("The state store cannot be reached now; try again later.")
        return len(self.keys)

    def all(self) -> list[ApiKey]:
        return self.keys


@pytest.fixture
def counting() -> CountingStore:
    return CountingStore()


class TestAnUnreachableStore:
    def test_thousands_of_unknown_keys_ask_the_store_once(self, counting: CountingStore) -> None:
        known = KeyCache(counting, clock=lambda: NOW)  # type: ignore[arg-type]
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(known.get, map(str, range(5000)))) == {None}
        assert counting.num_asked == 1

    def test_what_is_known_holds_for_half_a_second_and_no_longer(self, counting: CountingStore) -> None:
        times = [NOW]
        known, key = KeyCache(counting, clock=lambda: times[0]), a_key()  # type: ignore[arg-type]
        counting.keys = [key]
        assert known.get(key.id) == key
        counting.is_away = True
        times[0] += FRESH_SECONDS * 0.9
        assert known.get(key.id) == key
        times[0] += FRESH_SECONDS * 0.2
        with pytest.raises(StorageUnavailable):
            known.get(key.id)
        assert known.any_key_created()

    def test_its_failure_is_believed_too_so_that_requests_do_not_wait_for_it(self, counting: CountingStore) -> None:
        times = [NOW]
        known = KeyCache(counting, clock=lambda: times[0])  # type: ignore[arg-type]
        counting.is_away = True
        for _ in range(100):
            with pytest.raises(StorageUnavailable):
                known.get("any")
        assert counting.num_asked == 1
        counting.is_away, times[0] = False, NOW + FRESH_SECONDS
        assert known.get("any") is None

    def test_a_store_never_read_is_not_taken_for_one_without_keys(self, counting: CountingStore) -> None:
        counting.is_away = True
        with pytest.raises(StorageUnavailable):
            KeyCache(counting).any_key_created()  # type: ignore[arg-type]

    def test_a_store_that_had_no_key_is_believed_to_have_none_while_it_is_away(self, counting: CountingStore) -> None:
        times = [NOW]
        known = KeyCache(counting, clock=lambda: times[0])  # type: ignore[arg-type]
        assert not known.any_key_created()
        counting.is_away = True
        times[0] += 60
        assert not known.any_key_created()

    def test_a_store_that_lost_its_keys_does_not_look_like_one_that_had_none(self, counting: CountingStore) -> None:
        times = [NOW]
        known = KeyCache(counting, clock=lambda: times[0])  # type: ignore[arg-type]
        counting.keys = [a_key()]
        assert known.any_key_created()
        counting.keys = []
        times[0] += 60
        assert known.get("any") is None
        assert known.any_key_created()


class TestKeys:
    def test_a_key_has_a_readable_id_and_256_random_bits_and_nothing_keeps_it(self) -> None:
        made = [new_key("a", frozenset(), CallerLimits(), created=NOW) for _ in range(100)]
        assert len({key for key, _ in made}) == len({known.id for _, known in made}) == 100
        for key, known in made:
            assert KEY.fullmatch(key)
            assert id_of(key) == known.id
            assert key.rpartition(known.id + "_")[2] not in repr(vars(known))
            assert known.hash not in repr(known)
            assert matches(known, key)

    @pytest.mark.parametrize("wrong", ["", "x", "acg_", "é"])
    def test_another_key_does_not_match(self, wrong: str) -> None:
        key, known = new_key("a", frozenset(), CallerLimits(), created=NOW)
        last = "A" if key[-1] != "A" else "B"
        for other in (wrong, key[:-1] + last, key + "A", key[:-1], known.hash):
            assert not matches(known, other)
        assert not matches(None, key)

    def test_a_key_of_another_form_has_an_id_that_tells_nothing_of_it(self) -> None:
        assert id_of("x" * 40) == "env-" + hash_of("x" * 40)[:16]
