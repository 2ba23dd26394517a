"""The key stores, which share one contract, and the key cache of a process. Redis is a real server."""

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


def make_key(**fields: object) -> ApiKey:
    record = new_key("a", frozenset({"generate"}), CallerLimits(), created=NOW)[1]
    return ApiKey(**vars(record) | fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")  # one server for all tests of the contract
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@dataclass
class Harness:
    """A store, and a function that opens another store on the same keys, as another process would."""

    store: KeyStore
    open_another: Callable[[], KeyStore]


@pytest.fixture(params=["sqlite", "redis"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
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

    yield Harness(open_store(), open_store)
    for state in opened:
        state.close()


class TestContract:
    def test_every_process_reads_back_all_fields_of_a_key(self, harness: Harness) -> None:
        limits = CallerLimits(requests_per_minute=0, requests_per_day=7, concurrent_requests=2)
        key = make_key(name="naïve 🎺", scopes=frozenset({"read", "admin"}), limits=limits, expires=NOW + 0.5)
        harness.store.add(key)
        assert harness.open_another().all() == [key]

    def test_keys_are_listed_oldest_first(self, harness: Harness) -> None:
        keys = [make_key(created=NOW + seconds) for seconds in (3, 1, 2)]
        for key in keys:
            harness.store.add(key)
        assert harness.store.all() == sorted(keys, key=lambda key: key.created)

    def test_a_second_key_with_the_same_id_is_refused(self, harness: Harness) -> None:
        key = make_key()
        harness.store.add(key)
        version = harness.store.version()
        with pytest.raises(ValueError, match=key.id):
            harness.store.add(make_key(id=key.id))
        assert (harness.store.all(), harness.store.version()) == ([key], version)

    def test_a_revoked_key_is_kept_with_the_time_of_its_first_revocation(self, harness: Harness) -> None:
        key = make_key()
        harness.store.add(key)
        revoked = harness.store.revoke(key.id, NOW + 1)
        assert revoked == make_key(**vars(key) | {"revoked": NOW + 1})
        assert harness.open_another().revoke(key.id, NOW + 2) == revoked
        assert harness.store.all() == [revoked]

    def test_revoking_an_unknown_id_changes_nothing(self, harness: Harness) -> None:
        harness.store.add(make_key())
        version = harness.store.version()
        assert harness.store.revoke("unknown0", NOW) is None
        assert harness.store.version() == version

    def test_the_version_is_0_only_until_the_first_key_and_grows_with_every_change(self, harness: Harness) -> None:
        other = harness.open_another()
        versions = [other.version()]
        keys = [make_key(), make_key()]
        for key in keys:
            harness.store.add(key)
            versions.append(other.version())
        for key in keys:
            harness.store.revoke(key.id, NOW)
            versions.append(other.version())
        assert versions[0] == 0
        assert versions == sorted(set(versions))

    def test_keys_added_and_revoked_by_many_threads_are_all_kept(self, harness: Harness) -> None:
        keys = [make_key() for _ in range(32)]
        stores = [harness.store, harness.open_another()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda numbered: stores[numbered[0] % 2].add(numbered[1]), enumerate(keys)))
            list(pool.map(lambda key: stores[0].revoke(key.id, NOW), keys[:16]))
        assert {key.id: key.revoked for key in stores[1].all()} == {
            key.id: NOW if index < 16 else None for index, key in enumerate(keys)
        }
        assert stores[1].version() == 48


class TestKeyCache:
    @pytest.mark.timing
    def test_changes_by_another_process_are_seen_within_a_second(self, harness: Harness) -> None:
        cache, other, key = KeyCache(harness.store), harness.open_another(), make_key()
        assert not cache.any_key_created()
        for change, expected in (
            (lambda: other.add(key), key),
            (lambda: other.revoke(key.id, NOW), None),
        ):
            change()
            started, pause = time.monotonic(), threading.Event()
            while cache.get(key.id) != expected:
                assert time.monotonic() - started < 1.0
                pause.wait(0.01)
        assert cache.any_key_created()  # even though the only key is revoked


def test_opening_a_new_file_waits_for_another_process_that_is_opening_it(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE started (id)")
        other.execute("BEGIN IMMEDIATE")  # until it ends, SQLite refuses to switch to WAL
        commit = threading.Timer(0.2, other.execute, ("COMMIT",))
        commit.start()
        file = SqliteFile(path, schema.LAYOUT)
        assert SqliteKeyStore(file).version() == 0
        file.close()
        commit.join()


class CountingStore:
    """A store that counts its reads, and fails while `is_unreachable`."""

    def __init__(self) -> None:
        self.keys: list[ApiKey] = []
        self.num_reads = 0
        self.is_unreachable = False

    def version(self) -> int:
        self.num_reads += 1
        if self.is_unreachable:
            raise StorageUnavailable("The state store cannot be reached; try again later.")
        return len(self.keys)

    def all(self) -> list[ApiKey]:
        return self.keys


@pytest.fixture
def counting() -> CountingStore:
    return CountingStore()


class TestUnreachableStore:
    def test_thousands_of_unknown_keys_cause_one_read_of_the_store(self, counting: CountingStore) -> None:
        cache = KeyCache(counting, clock=lambda: NOW)  # type: ignore[arg-type]
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(cache.get, map(str, range(5000)))) == {None}
        assert counting.num_reads == 1

    def test_cached_keys_are_used_for_half_a_second_and_no_longer(self, counting: CountingStore) -> None:
        times = [NOW]
        cache, key = KeyCache(counting, clock=lambda: times[0]), make_key()  # type: ignore[arg-type]
        counting.keys = [key]
        assert cache.get(key.id) == key
        counting.is_unreachable = True
        times[0] += FRESH_SECONDS * 0.9
        assert cache.get(key.id) == key
        times[0] += FRESH_SECONDS * 0.2
        with pytest.raises(StorageUnavailable):
            cache.get(key.id)
        assert cache.any_key_created()

    def test_a_failure_is_cached_so_that_requests_do_not_wait_for_it(self, counting: CountingStore) -> None:
        times = [NOW]
        cache = KeyCache(counting, clock=lambda: times[0])  # type: ignore[arg-type]
        counting.is_unreachable = True
        for _ in range(100):
            with pytest.raises(StorageUnavailable):
                cache.get("any")
        assert counting.num_reads == 1
        counting.is_unreachable, times[0] = False, NOW + FRESH_SECONDS
        assert cache.get("any") is None

    def test_a_store_that_was_never_read_is_not_treated_as_empty(self, counting: CountingStore) -> None:
        counting.is_unreachable = True
        with pytest.raises(StorageUnavailable):
            KeyCache(counting).any_key_created()  # type: ignore[arg-type]

    def test_an_empty_store_is_still_treated_as_empty_while_it_is_unreachable(self, counting: CountingStore) -> None:
        times = [NOW]
        cache = KeyCache(counting, clock=lambda: times[0])  # type: ignore[arg-type]
        assert not cache.any_key_created()
        counting.is_unreachable = True
        times[0] += 60
        assert not cache.any_key_created()

    def test_a_store_that_lost_its_keys_is_not_treated_as_one_that_never_had_any(self, counting: CountingStore) -> None:
        times = [NOW]
        cache = KeyCache(counting, clock=lambda: times[0])  # type: ignore[arg-type]
        counting.keys = [make_key()]
        assert cache.any_key_created()
        counting.keys = []
        times[0] += 60
        assert cache.get("any") is None
        assert cache.any_key_created()


class TestKeyFormat:
    def test_a_key_has_a_readable_id_and_256_random_bits_and_is_not_in_its_record(self) -> None:
        created = [new_key("a", frozenset(), CallerLimits(), created=NOW) for _ in range(100)]
        assert len({key for key, _ in created}) == len({record.id for _, record in created}) == 100
        for key, record in created:
            assert KEY.fullmatch(key)
            assert id_of(key) == record.id
            assert key.rpartition(record.id + "_")[2] not in repr(vars(record))
            assert record.hash not in repr(record)
            assert matches(record, key)

    @pytest.mark.parametrize("wrong", ["", "x", "acg_", "é"])
    def test_another_key_does_not_match(self, wrong: str) -> None:
        key, record = new_key("a", frozenset(), CallerLimits(), created=NOW)
        last = "A" if key[-1] != "A" else "B"
        for other in (wrong, key[:-1] + last, key + "A", key[:-1], record.hash):
            assert not matches(record, other)
        assert not matches(None, key)

    def test_the_id_of_a_key_in_another_format_is_derived_from_its_hash(self) -> None:
        assert id_of("x" * 40) == "env-" + hash_of("x" * 40)[:16]
