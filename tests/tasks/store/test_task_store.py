"""The contract of task stores, run over SQLite and a real Redis: limits, leases, attempts, final states."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from audiocraft_api.core.errors import IdempotencyConflict, QueueFull, StorageUnavailable, TooManyTasks
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.task import INTERRUPTED_CODE, NewTask, Task
from support.redis_server import RedisServer

LEASE_SECONDS = 30.0
HOUR_SECONDS = 3600.0


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class StoreHarness:
    """A store, its clock, and short methods for what tests do repeatedly."""

    store: TaskStore
    clock: Clock
    open_another: Callable[..., TaskStore]  # with the same tasks, as another process opens it; takes its options
    unreadable: Callable[[Task], AbstractContextManager[None]]  # makes the store fail when it expires this task

    def submit(
        self, *, max_queued: int = 1000, max_audio_bytes: int = 10**6, max_unfinished: int = 0, **fields: Any
    ) -> Task:
        new = NewTask(**{"id": str(uuid.uuid4()), "command": {"prompt": "a"}, **fields})
        return self.store.submit(
            new, max_queued=max_queued, max_audio_bytes=max_audio_bytes, max_unfinished=max_unfinished
        )

    def claim(self, worker_id: str = "worker") -> Task:
        task = self.store.claim(worker_id, LEASE_SECONDS)
        assert task is not None
        return task

    def get(self, task: Task) -> Task:
        found = self.store.get(task.id)
        assert found is not None
        return found

    def pass_seconds(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreHarness]:
    if request.param == "sqlite":
        yield from sqlite_harness(tmp_path / "tasks.sqlite3")
    else:
        yield from redis_harness(request.getfixturevalue("redis_server"))


def sqlite_harness(path: Path) -> Iterator[StoreHarness]:
    clock, opened = Clock(), ExitStack()

    def open_store(**options: Any) -> TaskStore:
        store = SqliteTaskStore(path, max_attempts=2, clock=clock, wall_clock=clock, **options)
        opened.callback(store.close)
        return store

    @contextmanager
    def unreadable(task: Task) -> Iterator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(f"""
                CREATE TRIGGER broken BEFORE DELETE ON tasks WHEN OLD.id = '{task.id}'
                BEGIN SELECT RAISE(ABORT, 'broken'); END
            """)
            yield
            db.execute("DROP TRIGGER broken")

    with opened:
        yield StoreHarness(open_store(), clock, open_store, unreadable)


def redis_harness(server: RedisServer) -> Iterator[StoreHarness]:
    clock, opened = Clock(), ExitStack()
    prefix = f"{{{uuid.uuid4()}}}:"

    def open_store(**options: Any) -> TaskStore:
        store = RedisTaskStore(server.url, max_attempts=2, prefix=prefix, clock=clock, **options)
        opened.callback(store.close)
        return store

    @contextmanager
    def unreadable(task: Task) -> Iterator[None]:
        with closing(redis.Redis.from_url(server.url)) as client:
            client.rename(f"{prefix}task:{task.id}", f"{prefix}moved")
            client.set(f"{prefix}task:{task.id}", "not a hash")
            yield
            client.rename(f"{prefix}moved", f"{prefix}task:{task.id}")

    with opened:
        yield StoreHarness(open_store(), clock, open_store, unreadable)


def in_parallel(num_threads: int, calls: list[Callable[[], Any]]) -> list[Any]:
    """Return each call's result, or the error by which the store refused it."""

    def attempt(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (QueueFull, TooManyTasks) as error:
            return error

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(attempt, calls))


class TestAcceptance:
    def test_every_process_reads_an_accepted_task_unchanged(self, harness: StoreHarness) -> None:
        command = {"prompt": "naïve 🎺\n", "seed": 2**53 - 1, "temperature": 0.1, "melody": None, "list": []}
        task = harness.submit(
            command=command,
            audio=b"\x00\xff audio",
            owner="key-1",
            idempotency_key="k",
            fingerprint="f",
            webhook_url="https://example.org/hook",
        )
        other = harness.open_another()
        found = other.get(task.id)
        assert found is not None
        assert vars(found) == vars(task)
        assert (found.command, found.state, found.number, found.version) == (command, "queued", task.number, 1)
        assert (found.owner, found.webhook_url, found.attempts) == ("key-1", "https://example.org/hook", 0)
        assert found.created == found.updated == harness.clock.now
        assert other.audio(task.id) == b"\x00\xff audio"

    def test_an_unknown_task_is_none_in_every_method(self, harness: StoreHarness) -> None:
        assert harness.store.get("unknown") is None
        assert harness.store.audio("unknown") is None
        assert harness.store.position("unknown") is None
        assert harness.store.request_cancel("unknown") is None
        assert harness.store.wait_for_change("unknown", 0, 5.0) is None
        assert harness.store.claim("worker", LEASE_SECONDS, "unknown") is None

    def test_concurrent_writers_fill_the_queue_exactly_to_its_limit(self, harness: StoreHarness) -> None:
        harnesses = (harness, replace(harness, store=harness.open_another()))
        calls = [lambda i=i: harnesses[i % 2].submit(max_queued=50) for i in range(640)]
        outcomes = in_parallel(32, calls)
        accepted = [outcome for outcome in outcomes if isinstance(outcome, Task)]
        assert len(accepted) == 50
        assert harness.store.status().num_queued == 50
        assert len({task.number for task in accepted}) == 50

    def test_a_claimed_task_makes_room_in_the_queue(self, harness: StoreHarness) -> None:
        harness.submit(max_queued=1)
        with pytest.raises(QueueFull, match="The queue is full: 1 tasks are waiting"):
            harness.submit(max_queued=1)
        harness.claim()
        harness.submit(max_queued=1)

    def test_submitting_the_same_id_twice_creates_one_task(self, harness: StoreHarness) -> None:
        task = harness.submit()
        assert harness.submit(id=task.id).number == task.number
        assert harness.store.status().num_queued == 1

    def test_the_audio_of_all_unfinished_tasks_is_limited(self, harness: StoreHarness) -> None:
        harness.submit(audio=b"x" * 60, max_audio_bytes=100)
        with pytest.raises(QueueFull, match="melodies"):
            harness.submit(audio=b"x" * 60, max_audio_bytes=100)
        harness.submit(max_audio_bytes=100)
        task = harness.claim()
        assert harness.store.audio(task.id) == b"x" * 60
        assert harness.store.complete(task, {})
        assert harness.store.audio(task.id) is None
        harness.submit(audio=b"x" * 60, max_audio_bytes=100)

    def test_concurrent_writers_reach_exactly_the_limit_of_each_owner(self, harness: StoreHarness) -> None:
        harnesses = (harness, replace(harness, store=harness.open_another()))
        harness.submit(owner="me"), harness.submit(owner="me")
        assert harness.claim().owner == "me"
        calls = [lambda i=i: harnesses[i % 2].submit(owner="me", max_unfinished=20) for i in range(200)]
        calls += [lambda i=i: harnesses[i % 2].submit(owner="you", max_unfinished=7) for i in range(100)]
        accepted = [outcome.owner for outcome in in_parallel(32, calls) if isinstance(outcome, Task)]
        assert (accepted.count("me"), accepted.count("you")) == (18, 7)

    def test_a_task_counts_as_unfinished_until_any_final_state(self, harness: StoreHarness) -> None:
        endings: list[Callable[[Task], object]] = [
            lambda task: harness.store.complete(task, {}),
            lambda task: harness.store.fail(task, "No.", "no"),
            lambda task: harness.store.cancel(task),
        ]
        for end in endings:
            harness.submit(owner="me", max_unfinished=1)
            task = harness.claim()
            with pytest.raises(TooManyTasks, match="1 unfinished task") as caught:
                harness.submit(owner="me", max_unfinished=1)
            assert (caught.value.status, caught.value.code) == (429, "too_many_tasks")
            end(task)
        queued = harness.submit(owner="me", max_unfinished=1)
        harness.store.request_cancel(queued.id)
        harness.submit(owner="me", max_unfinished=1)

    def test_tasks_without_an_owner_have_no_limit_per_owner(self, harness: StoreHarness) -> None:
        assert len({harness.submit(max_unfinished=1).id for _ in range(3)}) == 3


class TestIdempotency:
    def test_a_hundred_concurrent_submits_with_one_key_create_one_task(self, harness: StoreHarness) -> None:
        post = lambda: harness.submit(owner="key-1", idempotency_key="once", fingerprint="f")  # noqa: E731
        tasks = in_parallel(32, [post] * 100)
        assert len({task.id for task in tasks}) == 1
        assert harness.store.status().num_queued == 1

    def test_a_key_reused_with_a_different_request_is_refused(self, harness: StoreHarness) -> None:
        harness.submit(idempotency_key="once", fingerprint="f")
        with pytest.raises(IdempotencyConflict) as caught:
            harness.submit(idempotency_key="once", fingerprint="g")
        assert (caught.value.status, caught.value.code) == (422, "idempotency_conflict")

    def test_a_task_is_found_by_its_idempotency_key_until_it_expires(self, harness: StoreHarness) -> None:
        made = {owner: harness.submit(owner=owner, idempotency_key="once", fingerprint="f") for owner in ("a", None)}
        for owner, task in made.items():
            found = harness.store.find_by_key(owner, "once")
            assert found is not None
            assert found.id == task.id
        assert harness.store.find_by_key("b", "once") is None
        assert harness.store.find_by_key("a", "twice") is None
        harness.store.complete(harness.claim(), {})
        harness.store.complete(harness.claim(), {})
        harness.store.expire(harness.clock.now + 1)
        assert [harness.open_another().find_by_key(owner, "once") for owner in made] == [None, None]

    def test_owners_do_not_share_idempotency_keys(self, harness: StoreHarness) -> None:
        tasks = [harness.submit(owner=owner, idempotency_key="once", fingerprint="f") for owner in ("a", "b", None)]
        assert len({task.id for task in tasks}) == 3

    def test_a_repeated_submit_returns_its_task_even_when_the_queue_is_full_or_the_task_final(
        self, harness: StoreHarness
    ) -> None:
        task = harness.submit(idempotency_key="once", max_queued=1)
        assert harness.submit(idempotency_key="once", max_queued=1).id == task.id
        harness.store.complete(harness.claim(), {"filename": "a.wav"})
        assert harness.submit(idempotency_key="once", max_queued=1).state == "completed"

    def test_a_repeated_submit_returns_its_task_even_when_its_owner_is_at_the_limit(
        self, harness: StoreHarness
    ) -> None:
        task = harness.submit(owner="me", idempotency_key="once", max_unfinished=1)
        assert harness.submit(owner="me", idempotency_key="once", max_unfinished=1).id == task.id


class TestClaims:
    def test_tasks_are_claimed_in_order_of_acceptance(self, harness: StoreHarness) -> None:
        tasks = [harness.submit() for _ in range(5)]
        assert [harness.claim().id for _ in tasks] == [task.id for task in tasks]
        assert harness.store.claim("worker", LEASE_SECONDS) is None

    def test_a_claim_counts_the_attempt_and_names_its_lease(self, harness: StoreHarness) -> None:
        harness.submit()
        task = harness.claim("worker-7")
        assert (task.state, task.attempts, task.started) == ("processing", 1, harness.clock.now)
        assert task.lease is not None
        assert task.lease.startswith("worker-7/")

    def test_concurrent_workers_never_claim_the_same_task(self, harness: StoreHarness) -> None:
        tasks = [harness.submit() for _ in range(60)]
        stores = (harness.store, harness.open_another())
        calls = [lambda i=i: stores[i % 2].claim(f"worker-{i}", LEASE_SECONDS) for i in range(100)]
        claimed = [task.id for task in in_parallel(32, calls) if task is not None]
        assert sorted(claimed) == sorted(task.id for task in tasks)

    def test_a_given_task_can_be_claimed_unless_it_is_leased_or_final(self, harness: StoreHarness) -> None:
        harness.submit()
        wanted = harness.submit()
        task = harness.store.claim("worker", LEASE_SECONDS, wanted.id)
        assert task is not None
        assert task.id == wanted.id
        assert harness.store.claim("other", LEASE_SECONDS, wanted.id) is None
        harness.store.complete(task, {})
        assert harness.store.claim("other", LEASE_SECONDS, wanted.id) is None

    def test_heartbeats_renew_the_lease_and_write_the_progress(self, harness: StoreHarness) -> None:
        harness.submit()
        task = harness.claim()
        for done in range(1, 6):
            harness.pass_seconds(LEASE_SECONDS * 0.9)
            assert harness.store.heartbeat(task, done, 250) == "leased"
        assert harness.store.claim("other", LEASE_SECONDS) is None
        seen = harness.get(task)
        assert (seen.num_frames_done, seen.num_frames_total, seen.updated) == (5, 250, harness.clock.now)
        harness.store.heartbeat(task, 5, 250)
        assert harness.get(task).version == seen.version, "nothing that clients see has changed"

    def test_a_silent_worker_loses_its_task_and_its_late_result(self, harness: StoreHarness) -> None:
        harness.submit()
        late = harness.claim("silent")
        harness.store.heartbeat(late, 40, 250)
        harness.pass_seconds(LEASE_SECONDS + 0.001)
        task = harness.claim("other")
        assert (task.id, task.attempts, task.num_frames_done) == (late.id, 2, 0)
        assert harness.store.heartbeat(late, 250, 250) == "lost"
        assert not harness.store.complete(late, {"filename": "late.wav"})
        assert not harness.store.fail(late, "Late.", "late")
        assert not harness.store.cancel(late)
        assert not harness.store.release(late)
        assert harness.store.complete(task, {"filename": "good.wav"})
        assert harness.get(task).result == {"filename": "good.wav"}

    def test_a_silent_worker_may_still_finish_a_task_that_no_other_claimed(self, harness: StoreHarness) -> None:
        harness.submit()
        task = harness.claim()
        harness.pass_seconds(LEASE_SECONDS * 10)
        assert harness.store.complete(task, {})

    def test_a_task_that_kills_its_workers_fails_after_two_attempts_and_the_next_one_runs(
        self, harness: StoreHarness
    ) -> None:
        poison = harness.submit(audio=b"poison")
        healthy = harness.submit()
        for _ in range(2):
            assert harness.claim().id == poison.id
            harness.pass_seconds(LEASE_SECONDS + 1)
        assert harness.claim().id == healthy.id
        failed = harness.get(poison)
        assert (failed.state, failed.error_code, failed.attempts) == ("failed", INTERRUPTED_CODE, 2)
        assert failed.error == "The task was interrupted in each of its 2 attempts and will not be tried again."
        assert harness.store.audio(poison.id) is None

    def test_a_task_that_kills_its_workers_does_not_fail_the_tasks_that_ran_with_it(
        self, harness: StoreHarness
    ) -> None:
        tasks = [harness.submit() for _ in range(6)]
        poison = tasks[2]
        for number in (1, 2):
            assert [harness.claim(f"worker-{number}").attempts for _ in tasks] == [number] * 6
            harness.pass_seconds(LEASE_SECONDS + 1)
        late = harness.submit()
        for number, task in enumerate(tasks, 3):
            alone = harness.claim(f"worker-{number}")
            assert (alone.id, alone.attempts) == (task.id, 3)
            assert harness.store.claim(f"worker-{number}", LEASE_SECONDS) is None, "nothing runs with it"
            if task is poison:
                harness.pass_seconds(LEASE_SECONDS + 1)
            else:
                harness.store.complete(alone, {})
        assert harness.claim().id == late.id
        assert [harness.get(task).state for task in tasks] == ["completed"] * 2 + ["failed"] + ["completed"] * 3
        assert (
            harness.get(poison).error
            == "The task was interrupted in each of its 3 attempts and will not be tried again."
        )

    def test_a_task_that_must_run_alone_waits_for_its_workers_other_tasks_and_survives_a_release(
        self, harness: StoreHarness
    ) -> None:
        first, second = harness.submit(), harness.submit()
        for number in (1, 2):
            assert [harness.claim(f"worker-{number}").id for _ in range(2)] == [first.id, second.id]
            if number == 2:
                busy = harness.submit()
                assert harness.claim("busy").id == busy.id
                assert harness.store.heartbeat(harness.get(busy), 0, 0) == "leased"
            harness.pass_seconds(LEASE_SECONDS + 1 if number == 1 else LEASE_SECONDS - 1)
        assert harness.store.heartbeat(harness.get(busy), 0, 0) == "leased"
        harness.pass_seconds(2)
        assert harness.store.claim("busy", LEASE_SECONDS) is None
        assert harness.store.complete(harness.get(busy), {})
        alone = harness.claim("busy")
        assert (alone.id, alone.attempts) == (first.id, 3)
        assert harness.store.release(alone)
        alone = harness.claim("busy")
        assert (alone.id, alone.attempts) == (first.id, 3)
        assert harness.store.complete(alone, {})
        assert harness.claim("busy").id == second.id

    def test_a_released_task_keeps_its_place_and_counts_no_attempt(self, harness: StoreHarness) -> None:
        first, _ = harness.submit(), harness.submit()
        for _ in range(5):
            task = harness.claim()
            assert (task.id, task.attempts) == (first.id, 1)
            harness.store.heartbeat(task, 3, 4)
            assert harness.store.release(task)
            assert not harness.store.release(task)
            released = harness.get(first)
            assert (released.state, released.attempts, released.num_frames_done) == ("queued", 0, 0)
            assert harness.store.position(first.id) == 1

    def test_a_release_can_pause_the_task_and_count_the_attempt(self, harness: StoreHarness) -> None:
        first, second = harness.submit(), harness.submit()
        assert harness.store.release(harness.claim(), pause_seconds=10.0, count_attempt=True)
        assert (harness.get(first).state, harness.get(first).attempts) == ("queued", 1)
        assert harness.claim().id == second.id
        assert harness.store.claim("worker", LEASE_SECONDS) is None
        harness.pass_seconds(10.001)
        assert (harness.claim().id, harness.get(first).attempts) == (first.id, 2)

    @pytest.mark.parametrize("jump_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
    def test_a_lease_survives_a_jump_of_the_clock(self, harness: StoreHarness, jump_seconds: float) -> None:
        harness.submit()
        task = harness.claim()
        harness.pass_seconds(jump_seconds)
        assert harness.store.heartbeat(task, 1, 2) == "leased"
        assert harness.store.claim("other", LEASE_SECONDS) is None
        harness.pass_seconds(LEASE_SECONDS - 1)
        assert harness.store.claim("other", LEASE_SECONDS) is None
        assert harness.store.complete(task, {})

    @pytest.mark.parametrize("jump_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
    def test_no_jump_of_the_clock_prolongs_the_lease_of_a_dead_worker(
        self, harness: StoreHarness, jump_seconds: float
    ) -> None:
        harness.submit()
        harness.claim("dead")
        harness.pass_seconds(jump_seconds + LEASE_SECONDS + 1)
        assert harness.claim("other").attempts == 2


class TestFairQueueing:
    def owners(self, harness: StoreHarness, num_claims: int) -> str:
        return "".join(harness.claim(f"worker-{uuid.uuid4()}").owner or "-" for _ in range(num_claims))

    def test_one_task_does_not_wait_for_all_tasks_of_another_owner(self, harness: StoreHarness) -> None:
        for owner in "aaaaaaab":
            harness.submit(owner=owner)
        assert self.owners(harness, 8) == "abaaaaaa"

    def test_the_owner_with_fewer_leased_tasks_is_next(self, harness: StoreHarness) -> None:
        for owner in "aaaabbbbbc":
            harness.submit(owner=owner)
        claimed = [harness.claim(f"worker-{number}") for number in range(5)]
        assert [task.owner for task in claimed] == ["a", "b", "c", "a", "b"]
        harness.store.complete(claimed[1], {})
        harness.store.complete(claimed[4], {})
        assert self.owners(harness, 4) == "bbab"

    def test_of_equal_owners_the_least_recently_served_is_next(self, harness: StoreHarness) -> None:
        for owner in "aaabbbccc":
            harness.submit(owner=owner)
        order = ""
        for _ in range(9):
            task = harness.claim()
            order += task.owner or "-"
            harness.store.complete(task, {})
        assert order == "abcabcabc"

    def test_owners_that_resubmit_at_once_do_not_starve_an_owner_with_a_long_queue(self, harness: StoreHarness) -> None:
        for owner in "aaaabc":
            harness.submit(owner=owner)
        order = ""
        for _ in range(12):
            task = harness.claim()
            order += task.owner or "-"
            harness.store.complete(task, {})
            if task.owner != "a":
                harness.submit(owner=task.owner)
        assert order == "abc" * 4

    def test_each_owners_tasks_are_claimed_in_order_of_acceptance(self, harness: StoreHarness) -> None:
        tasks = [harness.submit(owner="ab"[number % 3 == 0]) for number in range(12)]
        claimed = [harness.claim(f"worker-{number}") for number in range(12)]
        for owner in "ab":
            accepted = [task.id for task in tasks if task.owner == owner]
            assert [task.id for task in claimed if task.owner == owner] == accepted

    def test_tasks_without_an_owner_count_as_one_owners(self, harness: StoreHarness) -> None:
        for owner in (None, None, None, "a", "a"):
            harness.submit(owner=owner)
        assert self.owners(harness, 5) == "-a-a-"

    def test_owners_without_claimable_tasks_are_skipped(self, harness: StoreHarness) -> None:
        paused = harness.submit(owner="a")
        assert harness.store.release(harness.claim(), pause_seconds=10.0)
        harness.store.request_cancel(harness.submit(owner="b").id)
        harness.submit(owner="c")
        assert self.owners(harness, 1) == "c"
        assert harness.store.claim("worker", LEASE_SECONDS) is None
        harness.pass_seconds(11)
        assert harness.claim("other").id == paused.id

    def test_expired_leases_of_dead_workers_do_not_count(self, harness: StoreHarness) -> None:
        for owner in "aab":
            harness.submit(owner=owner)
        assert self.owners(harness, 2) == "ab"
        harness.pass_seconds(LEASE_SECONDS + 1)
        assert self.owners(harness, 3) == "aba"

    def test_concurrent_workers_give_every_owner_its_share(self, harness: StoreHarness) -> None:
        for number in range(90):
            harness.submit(owner="a" if number < 80 else f"other-{number}")
        stores = (harness.store, harness.open_another())
        calls = [lambda i=i: stores[i % 2].claim(f"worker-{i}", LEASE_SECONDS) for i in range(20)]
        owners = [task.owner for task in in_parallel(16, calls) if task is not None]
        assert (len(owners), owners.count("a")) == (20, 10)

    @pytest.mark.timing
    def test_a_long_queue_does_not_slow_claims_down(self, harness: StoreHarness) -> None:
        """With as many owners, claims from a queue of 20 times the length take less than 4 times as long."""

        def submit(num_tasks: int) -> None:
            for number in range(num_tasks):
                harness.submit(owner=f"owner-{number % 100}", max_queued=10_000)

        def seconds_for_claims() -> float:
            started = time.perf_counter()
            tasks = [harness.claim(f"worker-{number}") for number in range(50)]
            seconds = time.perf_counter() - started
            assert len({task.owner for task in tasks}) == 50
            for task in tasks:
                harness.store.release(task)
            return seconds

        submit(100)
        short = seconds_for_claims()
        submit(1900)
        assert seconds_for_claims() < 4 * short


class TestOlderRelease:
    """Redis as an older release leaves it: without the keys of fair queueing."""

    @pytest.fixture
    def harness(self, redis_server: RedisServer) -> Iterator[StoreHarness]:
        clock, self.prefix = Clock(), f"{{{uuid.uuid4()}}}:"
        store = RedisTaskStore(redis_server.url, max_attempts=2, prefix=self.prefix, clock=clock)
        with closing(store), closing(redis.Redis.from_url(redis_server.url)) as self.redis:
            yield StoreHarness(store, clock, lambda: store, lambda _: nullcontext())

    def delete_fair_queueing_keys(self) -> None:
        names = [f"{self.prefix}{name}" for name in ("turn", "turns", "waiting", "shared_out")]
        self.redis.delete(*names, *self.redis.keys(f"{self.prefix}unfinished:*"))

    def test_tasks_that_it_accepted_and_started_are_claimed_and_count(self, harness: StoreHarness) -> None:
        for owner in ("a", "a", "a", "b", None):
            harness.submit(owner=owner)
        running = harness.claim()
        self.delete_fair_queueing_keys()
        with pytest.raises(TooManyTasks, match="3 unfinished tasks"):
            harness.submit(owner="a", max_unfinished=3)
        assert [harness.claim(f"worker-{number}").owner for number in range(4)] == ["b", None, "a", "a"]
        assert harness.store.release(running)
        assert harness.claim("again").id == running.id

    def test_tasks_that_it_finished_are_neither_claimed_nor_counted(self, harness: StoreHarness) -> None:
        ended, waiting = harness.submit(owner="a"), harness.submit(owner="b")
        for name in ("unfinished", "queued"):
            self.redis.zrem(self.prefix + name, ended.id)
        self.redis.hset(f"{self.prefix}task:{ended.id}", "state", "completed")
        assert harness.claim().id == waiting.id
        assert harness.store.claim("worker", LEASE_SECONDS) is None
        harness.submit(owner="a", max_unfinished=1)


class TestFinalStates:
    def test_a_final_state_never_changes(self, harness: StoreHarness) -> None:
        for end in (
            lambda task: harness.store.complete(task, {"filename": "a.wav"}),
            lambda task: harness.store.fail(task, "It failed.", "generation_failed"),
            lambda task: harness.store.cancel(task),
        ):
            harness.submit()
            task = harness.claim()
            assert end(task)
            ended = harness.get(task)
            assert ended.is_final
            assert (ended.finished, ended.lease) == (harness.clock.now, None)
            assert not harness.store.complete(task, {"filename": "b.wav"})
            assert not harness.store.fail(task, "Again.", "again")
            assert not harness.store.cancel(task)
            assert not harness.store.release(task)
            assert harness.store.heartbeat(task, 1, 1) == "lost"
            assert vars(harness.get(task)) == vars(ended)
        assert harness.store.claim("worker", LEASE_SECONDS) is None

    def test_concurrent_endings_give_exactly_one_final_state(self, harness: StoreHarness) -> None:
        for _ in range(10):
            harness.submit()
            task = harness.claim()
            endings = [
                lambda task=task: harness.store.complete(task, {}),
                lambda task=task: harness.store.fail(task, "No.", "no"),
                lambda task=task: harness.store.cancel(task),
                lambda task=task: harness.store.release(task),
            ]
            assert in_parallel(16, endings * 4).count(True) == 1

    def test_cancel_works_in_every_state_and_twice(self, harness: StoreHarness) -> None:
        queued = harness.submit(audio=b"audio")
        for _ in range(2):
            canceled = harness.store.request_cancel(queued.id)
            assert canceled is not None
            assert (canceled.state, canceled.finished) == ("canceled", harness.clock.now)
        assert harness.store.audio(queued.id) is None

        harness.submit()
        running = harness.claim()
        versions = set()
        for _ in range(2):
            requested = harness.store.request_cancel(running.id)
            assert requested is not None
            assert (requested.state, requested.cancel_requested) == ("processing", True)
            versions.add(requested.version)
        assert len(versions) == 1
        assert harness.store.heartbeat(running, 1, 2) == "canceled"
        assert harness.store.cancel(running)
        assert harness.get(running).state == "canceled"

        harness.submit()
        done = harness.claim()
        harness.store.complete(done, {"filename": "a.wav"})
        for _ in range(2):
            kept = harness.store.request_cancel(done.id)
            assert kept is not None
            assert (kept.state, kept.cancel_requested) == ("completed", False)
        assert harness.store.status().num_processing == harness.store.status().num_queued == 0

    @pytest.mark.parametrize("ending", ["complete", "fail", "release"])
    def test_a_task_with_a_requested_cancellation_ends_canceled_whatever_its_worker_writes(
        self, harness: StoreHarness, ending: str
    ) -> None:
        harness.submit()
        task = harness.claim()
        harness.store.request_cancel(task.id)
        if ending == "complete":
            assert not harness.store.complete(task, {"filename": "unwanted.wav"})
        elif ending == "fail":
            harness.store.fail(task, "It failed.", "generation_failed")
        else:
            harness.store.release(task)
        ended = harness.get(task)
        assert (ended.state, ended.result, ended.error) == ("canceled", None, None)

    def test_a_task_of_a_dead_worker_is_canceled_once_its_lease_ends(self, harness: StoreHarness) -> None:
        before, after = harness.submit(), harness.submit()
        harness.claim("dead"), harness.claim("dead")
        harness.store.request_cancel(before.id)
        harness.pass_seconds(LEASE_SECONDS + 1)
        canceled = harness.store.request_cancel(after.id)
        assert canceled is not None
        assert canceled.state == "canceled"
        assert harness.store.claim("other", LEASE_SECONDS) is None
        assert (harness.get(before).state, harness.get(before).attempts) == ("canceled", 1)


class TestLists:
    def test_pages_list_an_owners_tasks_newest_first(self, harness: StoreHarness) -> None:
        mine = [harness.submit(owner="me").id for _ in range(7)]
        harness.submit(owner="you"), harness.submit()
        seen: list[str] = []
        before = None
        while page := harness.store.page("me", before=before, limit=3):
            seen += [task.id for task in page]
            before = page[-1].number
        assert seen == mine[::-1]
        assert len(harness.store.page(None)) == 1
        assert harness.store.page("nobody") == []

    def test_position_and_status_follow_the_queue(self, harness: StoreHarness) -> None:
        assert harness.store.status().mean_run_seconds is None
        tasks = [harness.submit() for _ in range(3)]
        assert [harness.store.position(task.id) for task in tasks] == [1, 2, 3]
        claimed = harness.claim()
        assert [harness.store.position(task.id) for task in tasks] == [None, 1, 2]
        status = harness.store.status()
        assert (status.num_queued, status.num_processing) == (2, 1)
        harness.pass_seconds(4.0)
        harness.store.complete(claimed, {})
        claimed = harness.claim()
        harness.pass_seconds(6.0)
        harness.store.complete(claimed, {})
        status = harness.store.status()
        assert (status.num_queued, status.num_processing) == (1, 0)
        assert status.mean_run_seconds == pytest.approx(5.0)

    def test_expired_tasks_are_deleted_and_their_files_returned(self, harness: StoreHarness) -> None:
        old = [harness.submit(owner="me", idempotency_key=str(i)) for i in range(4)]
        harness.store.complete(harness.claim(), {"filename": "old.wav"})
        harness.store.fail(harness.claim(), "No.", "no")
        harness.store.request_cancel(old[2].id)
        harness.pass_seconds(100)
        young = harness.submit(owner="me")
        harness.claim()
        harness.store.complete(harness.claim(), {"filename": "young.wav"})
        assert harness.store.expire(harness.clock.now - 50) == ["old.wav"]
        assert harness.store.expire(harness.clock.now - 50) == []
        assert [task.id for task in harness.store.page("me")] == [young.id, old[3].id]
        assert harness.submit(owner="me", idempotency_key="0").id != old[0].id, "its key is free again"

    def test_files_of_expired_tasks_are_returned_even_if_the_store_fails_afterwards(
        self, harness: StoreHarness
    ) -> None:
        tasks = []
        for name in ("a.wav", "b.wav"):
            harness.submit()
            tasks.append(harness.claim())
            harness.store.complete(tasks[-1], {"filename": name})
            harness.pass_seconds(1)
        store = harness.open_another(expire_batch=1)
        with harness.unreadable(tasks[1]):
            assert store.expire(harness.clock.now) == ["a.wav"]
            with pytest.raises(StorageUnavailable):
                store.expire(harness.clock.now)
        assert store.expire(harness.clock.now) == ["b.wav"]

    def test_one_call_expires_more_tasks_than_fit_into_one_batch(self, harness: StoreHarness) -> None:
        for _ in range(12):
            harness.store.request_cancel(harness.submit().id)
        harness.submit()
        harness.pass_seconds(1)
        store = harness.open_another(expire_batch=5)
        assert store.expire(harness.clock.now) == []
        assert len(store.page(None, limit=10)) == 1


class TestChanges:
    def test_a_waiter_is_woken_by_every_kind_of_change(self, harness: StoreHarness) -> None:
        task = harness.submit()
        claimed: list[Task] = []
        changes: list[Callable[[], object]] = [
            lambda: claimed.append(harness.claim()),
            lambda: harness.store.heartbeat(claimed[-1], 5, 250),
            lambda: harness.store.release(claimed[-1]),
            lambda: claimed.append(harness.claim()),
            lambda: harness.store.request_cancel(task.id),
            lambda: harness.store.complete(claimed[-1], {}),
        ]
        states = []
        with ThreadPoolExecutor(1) as pool:
            for change in changes:
                version = harness.get(task).version
                waiting = pool.submit(harness.store.wait_for_change, task.id, version, 20.0)
                change()
                seen = waiting.result(timeout=20)
                assert seen is not None
                assert seen.version == version + 1
                states.append(seen.state)
        assert states == ["processing", "processing", "queued", "processing", "processing", "canceled"]

    def test_a_waiter_sees_a_change_by_another_process(self, harness: StoreHarness) -> None:
        task = harness.submit()
        other = harness.open_another()
        timer = threading.Timer(0.05, other.request_cancel, (task.id,))
        timer.start()
        seen = harness.store.wait_for_change(task.id, task.version, 20.0)
        timer.join()
        assert seen is not None
        assert seen.state == "canceled"

    def test_a_waiter_gets_the_unchanged_task_after_its_timeout(self, harness: StoreHarness) -> None:
        task = harness.submit()
        seen = harness.store.wait_for_change(task.id, task.version, 0.05)
        assert seen is not None
        assert seen.version == task.version


class TestWebhooks:
    def finish(self, harness: StoreHarness, **fields: Any) -> Task:
        harness.submit(**{"webhook_url": "https://example.org/hook", **fields})
        task = harness.claim()
        assert harness.store.complete(task, {"filename": "a.wav"})
        return harness.get(task)

    def test_a_webhook_is_pending_from_the_final_state_until_end_webhook(self, harness: StoreHarness) -> None:
        self.finish(harness, webhook_url=None)
        harness.submit(webhook_url="https://example.org/hook")
        assert harness.store.claim_webhook(10.0) is None
        harness.store.fail(harness.claim(), "No.", "no")
        claimed = harness.open_another().claim_webhook(10.0)
        assert claimed is not None
        assert (claimed.state, claimed.webhook_url, claimed.webhook_attempts) == (
            "failed",
            "https://example.org/hook",
            1,
        )
        assert harness.store.claim_webhook(10.0) is None
        harness.store.end_webhook(claimed)
        harness.pass_seconds(HOUR_SECONDS)
        assert harness.store.claim_webhook(10.0) is None
        assert harness.get(claimed).version == claimed.version

    def test_a_canceled_task_has_a_pending_webhook_too(self, harness: StoreHarness) -> None:
        task = harness.submit(webhook_url="https://example.org/hook")
        harness.store.request_cancel(task.id)
        claimed = harness.store.claim_webhook(10.0)
        assert claimed is not None
        assert (claimed.id, claimed.state) == (task.id, "canceled")

    def test_a_webhook_of_a_dead_sender_is_due_again(self, harness: StoreHarness) -> None:
        task = self.finish(harness)
        assert harness.store.claim_webhook(10.0) is not None
        harness.pass_seconds(11)
        again = harness.store.claim_webhook(10.0)
        assert again is not None
        assert (again.id, again.webhook_attempts) == (task.id, 2)

    def test_a_paused_webhook_does_not_block_the_others(self, harness: StoreHarness) -> None:
        first, second = self.finish(harness), self.finish(harness)
        claimed = harness.store.claim_webhook(10.0)
        assert claimed is not None
        harness.store.pause_webhook(claimed, 60.0)
        other = harness.store.claim_webhook(10.0)
        assert other is not None
        assert {claimed.id, other.id} == {first.id, second.id}
        harness.store.end_webhook(other)
        assert harness.store.claim_webhook(10.0) is None
        harness.pass_seconds(61)
        again = harness.store.claim_webhook(10.0)
        assert again is not None
        assert (again.id, again.webhook_attempts) == (claimed.id, 2)

    def test_webhooks_of_busy_hosts_are_skipped(self, harness: StoreHarness) -> None:
        first = self.finish(harness, webhook_url="https://slow.example/1")
        harness.pass_seconds(1)
        self.finish(harness, webhook_url="http://Slow.example:8080/2?a=b")
        harness.pass_seconds(1)
        last = self.finish(harness, webhook_url="https://fast.example/")
        claimed = harness.store.claim_webhook(10.0, ["slow.example", "other.example"])
        assert claimed is not None
        assert claimed.id == last.id
        assert harness.store.claim_webhook(10.0, ["slow.example"]) is None
        claimed = harness.store.claim_webhook(10.0)
        assert claimed is not None
        assert claimed.id == first.id

    def test_an_expired_task_has_no_pending_webhook(self, harness: StoreHarness) -> None:
        task = self.finish(harness)
        harness.pass_seconds(HOUR_SECONDS)
        harness.store.expire(harness.clock.now)
        assert harness.store.claim_webhook(10.0) is None
        harness.store.pause_webhook(task, 0.0)
        assert harness.store.claim_webhook(10.0) is None
