"""Faults that the task stores survive: killed processes, locked, damaged and full databases, restarts of Redis."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from audiocraft_api.core.errors import QueueFull, StorageUnavailable
from audiocraft_api.state.sqlite import Layout, SqliteFile
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.store.sqlite_schema import TABLES
from audiocraft_api.tasks.task import NewTask, Task
from support.redis_server import RedisServer
from support.served import wait_until
from support.task_process import open_store

TESTS = Path(__file__).parents[2]
NUM_KILLS = 25
KILLED_LEASE_SECONDS = 0.5
SECOND_LAYOUT = """
DROP INDEX queues; DROP INDEX processing_tasks; DROP INDEX turns; DROP INDEX owned_turns;
ALTER TABLE tasks DROP COLUMN turn;
CREATE INDEX unfinished_tasks ON tasks (number) WHERE state IN ('queued', 'processing');
"""


def submit(store: TaskStore, **fields: object) -> Task:
    new = NewTask(**{"id": str(uuid.uuid4()), "command": {"prompt": "a"}, **fields})  # type: ignore[arg-type]
    return store.submit(new, max_queued=1000, max_audio_bytes=10**6)


def claim(store: TaskStore) -> Task:
    task = store.claim("worker", 30.0)
    assert task is not None
    return task


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tasks.sqlite3"


@pytest.fixture
def store(database: Path) -> Iterator[SqliteTaskStore]:
    store = SqliteTaskStore(database, max_attempts=2, busy_seconds=0.2)
    yield store
    store.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


class TestKilledProcesses:
    @pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.fault)])
    def test_killed_processes_lose_no_task_and_finish_none_twice(
        self, kind: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        if kind == "sqlite":
            address = str(tmp_path / "tasks.sqlite3")
        else:
            address = f"{request.getfixturevalue('redis_server').url}#{{killed}}:"
        chance = random.Random(20)
        lines: list[str] = []
        running = [task_process("submit", address)]
        for number in range(NUM_KILLS):
            running.append(task_process("work" if number % 2 == 0 else "submit", address))
            victim = running.pop(0)
            lines += read_lines(victim, chance.randrange(1, 40))
            victim.send_signal(signal.SIGKILL)
            lines += victim.communicate()[0].splitlines()
        running[0].kill()
        lines += running[0].communicate()[0].splitlines()
        survivor = task_process("work", address)
        lines += survivor.communicate(timeout=60)[0].splitlines()

        ids: dict[str, Counter[str]] = {"accepted": Counter(), "claimed": Counter(), "completed": Counter()}
        for line in lines:
            if len(words := line.split()) == 2 and len(words[1]) == 36:  # the kill may have cut the last line short
                ids[words[0]][words[1]] += 1
        store = open_store(address)
        tasks = store.page(None, limit=10**5)
        store.close()
        num_twice = sum(count > 1 for count in ids["completed"].values())
        print(
            f"\n{kind}: {NUM_KILLS + 1} processes killed, {len(tasks)} tasks, all finished, {num_twice} twice, "
            f"{sum(task.attempts > 1 for task in tasks)} run again"
        )
        assert len(ids["accepted"]) > NUM_KILLS
        assert set(ids["accepted"]) <= {task.id for task in tasks}
        assert {task.state for task in tasks} == {"completed"}
        assert num_twice == 0
        if kind == "sqlite":
            with sqlite3.connect(address) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert db.execute("SELECT count(*) FROM audio").fetchone() == (0,)
            db.close()


def task_process(role: str, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "support" / "task_process.py"), role, address, str(KILLED_LEASE_SECONDS)]
    environ = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)


def read_lines(process: subprocess.Popen[str], num_lines: int) -> list[str]:
    """Return the next lines of a process, fewer if it ends."""
    assert process.stdout is not None
    return [line for _, line in zip(range(num_lines), process.stdout, strict=False)]


class TestLockedDatabase:
    def test_a_locked_database_gives_a_clear_error_and_works_again_afterwards(
        self, store: SqliteTaskStore, database: Path
    ) -> None:
        task = submit(store)
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match=r"busy\. Try again later"):
            submit(store)
        assert store.get(task.id) is not None, "reads still work"
        other.execute("ROLLBACK")
        other.close()
        submit(store)
        assert store.status().num_queued == 2

    @pytest.mark.timing
    def test_waiting_threads_are_refused_together_and_not_one_after_the_other(self, database: Path) -> None:
        store = SqliteTaskStore(database, max_attempts=2, busy_seconds=1.0)
        submit(store)
        with closing(store), closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            with ThreadPoolExecutor(16) as pool:
                outcomes = list(pool.map(lambda _: refusal(lambda: submit(store)), range(16)))
            assert time.monotonic() - started < 8.0, "one after the other they would take 16 seconds"
            assert {type(outcome) for outcome in outcomes} == {StorageUnavailable}
            other.execute("ROLLBACK")


def refusal(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except (StorageUnavailable, QueueFull) as error:
        return error
    return None


class TestDamagedDatabase:
    def assert_refused(self, database: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Assert that a store on this file refuses everything, says why once, and leaves the file as it is."""
        before = database.read_bytes()
        store = SqliteTaskStore(database, max_attempts=2)
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                with pytest.raises(StorageUnavailable, match="is damaged") as caught:
                    submit(store)
                assert str(database) not in caught.value.message
            with pytest.raises(StorageUnavailable):
                store.claim("worker", 30.0)
        store.close()
        assert database.read_bytes() == before
        assert len(caplog.records) == 1
        assert str(database) in caplog.text
        assert "restore a backup" in caplog.text

    def fill(self, database: Path) -> None:
        store = SqliteTaskStore(database, max_attempts=2)
        for _ in range(50):
            submit(store, command={"prompt": "x" * 2000})
        store.close()

    def test_a_file_that_is_not_a_database_is_refused_and_left_alone(
        self, database: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        database.parent.mkdir()
        database.write_bytes(b"these are not the tasks" * 1000)
        self.assert_refused(database, caplog)

    def test_a_damaged_page_is_found_at_the_start(self, database: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.fill(database)
        with open(database, "r+b") as file:
            file.seek(4096 * 3)
            file.write(b"\xa5" * 4096 * 8)
        self.assert_refused(database, caplog)

    def test_a_truncated_database_is_refused_and_left_alone(
        self, database: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.fill(database)
        os.truncate(database, database.stat().st_size // 2)
        self.assert_refused(database, caplog)

    def test_a_write_ahead_log_truncated_by_a_power_cut_loses_only_the_last_write(
        self, database: Path, tmp_path: Path
    ) -> None:
        store = SqliteTaskStore(database, max_attempts=2)
        tasks = [submit(store) for _ in range(10)]
        copy = tmp_path / "after" / database.name
        copy.parent.mkdir()
        for suffix in ("", "-wal"):
            source = database.with_name(database.name + suffix)
            copy.with_name(copy.name + suffix).write_bytes(source.read_bytes())
        store.close()
        wal = copy.with_name(copy.name + "-wal")
        os.truncate(wal, wal.stat().st_size - 100)
        after = SqliteTaskStore(copy, max_attempts=2)
        assert [task.id for task in after.page(None)][::-1] == [task.id for task in tasks[:-1]]
        submit(after)
        after.close()

    @pytest.mark.parametrize("layout", [1, 2])
    def test_a_database_of_an_older_layout_is_migrated_with_its_tasks(
        self, database: Path, store: SqliteTaskStore, layout: int
    ) -> None:
        self.fill(database)
        older = {2: SECOND_LAYOUT, 1: SECOND_LAYOUT + "ALTER TABLE tasks DROP COLUMN in_company;"}
        with sqlite3.connect(database) as db:
            db.executescript(f"{older[layout]} PRAGMA user_version = {layout};")
        db.close()
        submit(store, owner="a")
        assert [claim(store).owner, claim(store).owner] == [None, "a"]
        assert store.status().num_queued == 49
        with sqlite3.connect(database) as db, sqlite3.connect(database.with_name("new")) as new:
            for statement in TABLES.split(";"):
                new.execute(statement)
            names = "SELECT name FROM sqlite_schema ORDER BY name"
            assert db.execute(names).fetchall() == new.execute(names).fetchall()
        db.close()
        new.close()

    def test_a_database_of_an_unknown_layout_is_refused_and_left_alone(
        self, database: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.fill(database)
        with sqlite3.connect(database) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        store = SqliteTaskStore(database, max_attempts=2)
        with pytest.raises(StorageUnavailable, match="is unavailable"):
            submit(store)
        store.close()
        assert "its layout version is 99, but this release needs 3" in caplog.text


class TestFullDisk:
    def test_no_write_is_stored_in_part(self, store: SqliteTaskStore) -> None:
        running, releasing, canceling = (submit(store) for _ in range(3))
        for _ in range(3):
            claim(store)
        waiting = submit(store)
        tasks = {task.id: store.get(task.id) for task in (running, releasing, canceling, waiting)}
        claimed = tasks[running.id]
        assert claimed is not None
        writes: list[Callable[[], object]] = [
            lambda: submit(store),
            lambda: submit(store, audio=b"x" * 100_000),
            lambda: store.claim("worker", 30.0),
            lambda: store.heartbeat(claimed, 1, 2),
            lambda: store.complete(claimed, {"filename": "a.wav"}),
            lambda: store.fail(claimed, "No.", "no"),
            lambda: store.cancel(claimed),
            lambda: store.release(claimed),
            lambda: store.request_cancel(waiting.id),
        ]
        with no_file_can_be_written():
            refusals = [refusal(write) for write in writes]
        assert [type(error) for error in refusals] == [StorageUnavailable] * len(writes)
        print(f"\n{len(writes)} of {len(writes)} writes to a full disk were refused whole")
        for task_id, before in tasks.items():
            after = store.get(task_id)
            assert after is not None
            assert before is not None
            assert vars(after) == vars(before)
        assert len(store.page(None)) == 4
        assert store.complete(claimed, {"filename": "a.wav"})
        submit(store)

    def test_a_task_is_not_stored_without_its_audio(self, store: SqliteTaskStore, database: Path) -> None:
        submit(store)
        with closing(sqlite3.connect(database, isolation_level=None)) as db:
            db.execute("CREATE TRIGGER full BEFORE INSERT ON audio BEGIN SELECT RAISE(ABORT, 'no room'); END")
            with pytest.raises(StorageUnavailable, match="is unavailable"):
                submit(store, audio=b"x" * 100_000)
            db.execute("DROP TRIGGER full")
        assert store.status().num_queued == 1
        submit(store)

    def test_a_full_disk_is_named_in_the_error(self, tmp_path: Path) -> None:
        file = SqliteFile(tmp_path / "full.sqlite3", Layout("task store", 1, "CREATE TABLE blobs (data BLOB)"))
        with closing(file):
            with file.write() as db:
                (num_pages,) = db.execute("PRAGMA page_count").fetchone()
                db.execute(f"PRAGMA max_page_count = {num_pages + 5}")
            with pytest.raises(StorageUnavailable, match="is full"), file.write() as db:
                db.execute("INSERT INTO blobs VALUES (zeroblob(100000))")

    def test_a_directory_that_cannot_be_created_gives_a_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        store = SqliteTaskStore(tmp_path / "file" / "tasks.sqlite3", max_attempts=2)
        with pytest.raises(StorageUnavailable, match=r"is unavailable\. Try again later"):
            submit(store)
        store.close()

    def test_a_closed_store_says_so(self, store: SqliteTaskStore) -> None:
        submit(store)
        store.close()
        with pytest.raises(StorageUnavailable, match="closed"):
            submit(store)


@contextmanager
def no_file_can_be_written() -> Iterator[None]:
    """Make every write to a file fail in this process, as on a full disk (Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestPrivacy:
    def test_the_database_is_readable_by_its_owner_only(self, store: SqliteTaskStore, database: Path) -> None:
        submit(store)
        assert database.stat().st_mode & 0o077 == 0


class TestSpeed:
    @pytest.mark.timing
    def test_a_hundred_tasks_a_second_are_accepted_durably_and_a_full_queue_refuses_faster(
        self, database: Path
    ) -> None:
        """On two idle cores, more than 300 tasks a second. A refusal does not write, and so takes less time."""
        store = SqliteTaskStore(database, max_attempts=2)
        num_tasks = 1000

        def submits_per_second(max_queued: int, is_refused: bool) -> float:
            def submit_one(_: int) -> bool:
                new = NewTask(str(uuid.uuid4()), {"prompt": "a"}, idempotency_key=str(uuid.uuid4()))
                return refusal(lambda: store.submit(new, max_queued=max_queued, max_audio_bytes=10**6)) is not None

            started = time.perf_counter()
            with ThreadPoolExecutor(32) as pool:
                assert set(pool.map(submit_one, range(num_tasks))) == {is_refused}
            return num_tasks / (time.perf_counter() - started)

        submit(store)
        accepts = submits_per_second(10**6, is_refused=False)
        refusals = submits_per_second(50, is_refused=True)
        store.close()
        assert accepts >= 100
        assert refusals > accepts


class TestRedisOutages:
    @pytest.fixture
    def redis_store(self, redis_server: RedisServer) -> Iterator[RedisTaskStore]:
        store = RedisTaskStore(redis_server.url, max_attempts=2)
        yield store
        store.close()

    def test_tasks_survive_a_killed_redis_and_the_store_reconnects(
        self, redis_store: RedisTaskStore, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        submit(redis_store)
        running = claim(redis_store)
        waiting = submit(redis_store, audio=b"audio")
        redis_server.kill()
        calls: list[Callable[[], object]] = [
            lambda: submit(redis_store),
            lambda: redis_store.get(waiting.id),
            lambda: redis_store.find_by_key(None, "key"),
            lambda: redis_store.audio(waiting.id),
            lambda: redis_store.page(None),
            lambda: redis_store.position(waiting.id),
            lambda: redis_store.status(),
            lambda: redis_store.claim("worker", 30.0),
            lambda: redis_store.heartbeat(running, 1, 2),
            lambda: redis_store.complete(running, {}),
            lambda: redis_store.release(running),
            lambda: redis_store.request_cancel(waiting.id),
            lambda: redis_store.expire(0.0),
        ]
        refusals = [refusal(call) for call in calls]
        assert [type(error) for error in refusals] == [StorageUnavailable] * len(calls)
        assert len(caplog.records) == 1, "an outage is logged once"
        redis_server.start()
        assert redis_store.heartbeat(running, 1, 2) == "leased"
        assert redis_store.complete(running, {"filename": "a.wav"})
        assert redis_store.audio(waiting.id) == b"audio"
        assert claim(redis_store).id == waiting.id

    def test_a_redis_that_restarts_empty_knows_no_task_and_accepts_new_ones(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = tmp_path / "forgetful"
        directory.mkdir()
        server = RedisServer(directory, appendonly=False)
        server.start()
        store = RedisTaskStore(server.url, max_attempts=2)
        submit(store)
        assert "without `appendonly yes`" in caplog.text
        running = claim(store)
        server.kill()
        server.start()
        assert store.heartbeat(running, 1, 2) == "lost"
        assert not store.complete(running, {"filename": "a.wav"})
        assert store.get(running.id) is None
        assert submit(store).number == 1
        store.close()
        server.kill()

    def test_leases_use_the_servers_own_clock(self, redis_store: RedisTaskStore) -> None:
        submit(redis_store)
        lost = redis_store.claim("dead", 0.1)
        assert lost is not None
        wait_until(lambda: redis_store.num_claimable(1) == 1)
        task = claim(redis_store)
        assert task.attempts == 2
        assert task.started is not None
        assert abs(task.started - time.time()) < 60
