"""One contract over both task stores: bounds, leases, attempts, final states. Redis is a real server."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from audiocraft_api.core.errors import IdempotencyConflict, QueueFull, StorageUnavailable, TooManyTasks
from audiocraft_api.tasks.store import redis as redis_store
from audiocraft_api.tasks.store import sqlite as sqlite_store
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.task import INTERRUPTED_CODE, NewTask, Task
from support.redis_server import RedisServer

LEASE_SECONDS = 30.0
HOUR_SECONDS = 3600.0


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shop:
    """A store, its clock, and short words for what tests do again and again."""

    store: TaskStore
    clock: Clock
    open_another: Callable[[], TaskStore]  # on the same tasks, as another process would

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
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    clock = Clock()
    opened: list[TaskStore] = []
    prefix = f"{{{uuid.uuid4()}}}:"

    def open_store() -> TaskStore:
        store: TaskStore
        if request.param == "sqlite":
            store = SqliteTaskStore(tmp_path / "tasks.sqlite3", max_attempts=2, clock=clock, wall_clock=clock)
        else:
            server: RedisServer = request.getfixturevalue("redis_server")
            store = RedisTaskStore(server.url, max_attempts=2, prefix=prefix, clock=clock)
        opened.append(store)
        return store

    yield Shop(open_store(), clock, open_store)
    for store in opened:
        store.close()


def in_parallel(num_threads: int, calls: list[Callable[[], Any]]) -> list[Any]:
    """Return each call's result, or the refusal that it raised."""

    def attempt(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (QueueFull, TooManyTasks) as error:
            return error

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(attempt, calls))


class TestAcceptance:
    def test_an_accepted_task_is_read_back_whole_by_every_process(self, shop: Shop) -> None:
        command = {"prompt": "naïve 🎺\n", "seed": 2**53 - 1, "temperature": 0.1, "melody": None, "list": []}
        task = shop.submit(
            command=command,
            audio=b"\x00\xff tune",
            owner="key-1",
            idempotency_key="k",
            fingerprint="f",
            webhook_url="https://example.org/hook",
        )
        other = shop.open_another()
        found = other.get(task.id)
        assert found is not None
        assert vars(found) == vars(task)
        assert (found.command, found.state, found.number, found.version) == (command, "queued", task.number, 1)
        assert (found.owner, found.webhook_url, found.attempts) == ("key-1", "https://example.org/hook", 0)
        assert found.created == found.updated == shop.clock.now
        assert other.audio(task.id) == b"\x00\xff tune"

    def test_an_unknown_task_is_none_everywhere(self, shop: Shop) -> None:
        assert shop.store.get("unknown") is None
        assert shop.store.audio("unknown") is None
        assert shop.store.position("unknown") is None
        assert shop.store.request_cancel("unknown") is None
        assert shop.store.wait_for_change("unknown", 0, 5.0) is None
        assert shop.store.claim("worker", LEASE_SECONDS, "unknown") is None

    def test_racing_writers_fill_the_queue_to_exactly_its_limit(self, shop: Shop) -> None:
        other = shop.open_another()
        shops = (shop, Shop(other, shop.clock, shop.open_another))
        calls = [lambda i=i: shops[i % 2].submit(max_queued=50) for i in range(640)]
        outcomes = in_parallel(32, calls)
        accepted = [outcome for outcome in outcomes if isinstance(outcome, Task)]
        assert len(accepted) == 50
        assert shop.store.status().num_queued == 50
        assert len({task.number for task in accepted}) == 50

    def test_a_claimed_task_makes_room_in_the_queue(self, shop: Shop) -> None:
        shop.submit(max_queued=1)
        with pytest.raises(QueueFull, match="1 tasks are waiting already"):
            shop.submit(max_queued=1)
        shop.claim()
        shop.submit(max_queued=1)

    def test_the_same_submit_again_makes_no_second_task(self, shop: Shop) -> None:
        task = shop.submit()
        assert shop.submit(id=task.id).number == task.number
        assert shop.store.status().num_queued == 1

    def test_the_tunes_of_unfinished_tasks_are_bounded_together(self, shop: Shop) -> None:
        shop.submit(audio=b"x" * 60, max_audio_bytes=100)
        with pytest.raises(QueueFull, match="tunes"):
            shop.submit(audio=b"x" * 60, max_audio_bytes=100)
        shop.submit(max_audio_bytes=100)
        task = shop.claim()
        assert shop.store.audio(task.id) == b"x" * 60
        assert shop.store.complete(task, {})
        assert shop.store.audio(task.id) is None
        shop.submit(audio=b"x" * 60, max_audio_bytes=100)

    def test_racing_writers_of_one_owner_reach_exactly_its_bound_and_others_are_not_held_up(self, shop: Shop) -> None:
        shops = (shop, Shop(shop.open_another(), shop.clock, shop.open_another))
        shop.submit(owner="me"), shop.submit(owner="me")
        assert shop.claim().owner == "me"
        calls = [lambda i=i: shops[i % 2].submit(owner="me", max_unfinished=20) for i in range(200)]
        calls += [lambda i=i: shops[i % 2].submit(owner="you", max_unfinished=7) for i in range(100)]
        accepted = [outcome.owner for outcome in in_parallel(32, calls) if isinstance(outcome, Task)]
        assert (accepted.count("me"), accepted.count("you")) == (18, 7)

    def test_an_unfinished_task_counts_until_it_ends_however_it_ends(self, shop: Shop) -> None:
        endings: list[Callable[[Task], object]] = [
            lambda task: shop.store.complete(task, {}),
            lambda task: shop.store.fail(task, "No.", "no"),
            lambda task: shop.store.cancel(task),
        ]
        for end in endings:
            shop.submit(owner="me", max_unfinished=1)
            task = shop.claim()
            with pytest.raises(TooManyTasks, match="1 of your tasks are not finished") as caught:
                shop.submit(owner="me", max_unfinished=1)
            assert (caught.value.status, caught.value.code) == (429, "too_many_tasks")
            end(task)
        queued = shop.submit(owner="me", max_unfinished=1)
        shop.store.request_cancel(queued.id)
        shop.submit(owner="me", max_unfinished=1)

    def test_tasks_without_owner_have_no_bound_of_their_own(self, shop: Shop) -> None:
        assert len({shop.submit(max_unfinished=1).id for _ in range(3)}) == 3


class TestIdempotency:
    def test_a_hundred_parallel_posts_with_one_key_make_one_task(self, shop: Shop) -> None:
        post = lambda: shop.submit(owner="key-1", idempotency_key="once", fingerprint="f")  # noqa: E731
        tasks = in_parallel(32, [post] * 100)
        assert len({task.id for task in tasks}) == 1
        assert shop.store.status().num_queued == 1

    def test_the_same_key_with_another_request_is_refused(self, shop: Shop) -> None:
        shop.submit(idempotency_key="once", fingerprint="f")
        with pytest.raises(IdempotencyConflict) as caught:
            shop.submit(idempotency_key="once", fingerprint="g")
        assert (caught.value.status, caught.value.code) == (422, "idempotency_conflict")

    def test_a_task_is_found_by_the_key_that_made_it(self, shop: Shop) -> None:
        made = {owner: shop.submit(owner=owner, idempotency_key="once", fingerprint="f") for owner in ("a", None)}
        for owner, task in made.items():
            found = shop.store.made_by(owner, "once")
            assert found is not None
            assert found.id == task.id
        assert shop.store.made_by("b", "once") is None
        assert shop.store.made_by("a", "twice") is None
        shop.store.complete(shop.claim(), {})
        shop.store.complete(shop.claim(), {})
        shop.store.expire(shop.clock.now + 1)
        assert [shop.open_another().made_by(owner, "once") for owner in made] == [None, None]

    def test_owners_do_not_share_idempotency_keys(self, shop: Shop) -> None:
        tasks = [shop.submit(owner=owner, idempotency_key="once", fingerprint="f") for owner in ("a", "b", None)]
        assert len({task.id for task in tasks}) == 3

    def test_a_repeated_post_is_answered_even_when_the_queue_is_full_and_after_the_end(self, shop: Shop) -> None:
        task = shop.submit(idempotency_key="once", max_queued=1)
        assert shop.submit(idempotency_key="once", max_queued=1).id == task.id
        shop.store.complete(shop.claim(), {"filename": "a.wav"})
        assert shop.submit(idempotency_key="once", max_queued=1).state == "completed"

    def test_a_repeated_post_is_answered_even_when_its_owner_has_as_many_tasks_as_it_may(self, shop: Shop) -> None:
        task = shop.submit(owner="me", idempotency_key="once", max_unfinished=1)
        assert shop.submit(owner="me", idempotency_key="once", max_unfinished=1).id == task.id


class TestClaims:
    def test_tasks_are_claimed_in_the_order_of_acceptance(self, shop: Shop) -> None:
        tasks = [shop.submit() for _ in range(5)]
        assert [shop.claim().id for _ in tasks] == [task.id for task in tasks]
        assert shop.store.claim("worker", LEASE_SECONDS) is None

    def test_a_claim_counts_the_attempt_and_names_its_lease(self, shop: Shop) -> None:
        shop.submit()
        task = shop.claim("worker-7")
        assert (task.state, task.attempts, task.started) == ("processing", 1, shop.clock.now)
        assert task.lease is not None
        assert task.lease.startswith("worker-7/")

    def test_racing_workers_never_get_the_same_task(self, shop: Shop) -> None:
        tasks = [shop.submit() for _ in range(60)]
        stores = (shop.store, shop.open_another())
        calls = [lambda i=i: stores[i % 2].claim(f"worker-{i}", LEASE_SECONDS) for i in range(100)]
        claimed = [task.id for task in in_parallel(32, calls) if task is not None]
        assert sorted(claimed) == sorted(task.id for task in tasks)

    def test_a_certain_task_can_be_claimed_unless_somebody_holds_it(self, shop: Shop) -> None:
        shop.submit()
        wanted = shop.submit()
        task = shop.store.claim("worker", LEASE_SECONDS, wanted.id)
        assert task is not None
        assert task.id == wanted.id
        assert shop.store.claim("other", LEASE_SECONDS, wanted.id) is None
        shop.store.complete(task, {})
        assert shop.store.claim("other", LEASE_SECONDS, wanted.id) is None

    def test_heartbeats_hold_a_task_and_write_its_progress(self, shop: Shop) -> None:
        shop.submit()
        task = shop.claim()
        for done in range(1, 6):
            shop.pass_seconds(LEASE_SECONDS * 0.9)
            assert shop.store.heartbeat(task, done, 250) == "held"
        assert shop.store.claim("other", LEASE_SECONDS) is None
        seen = shop.get(task)
        assert (seen.num_frames_done, seen.num_frames_total, seen.updated) == (5, 250, shop.clock.now)
        shop.store.heartbeat(task, 5, 250)
        assert shop.get(task).version == seen.version, "nothing a client sees has changed"

    def test_a_silent_worker_loses_its_task_and_its_late_result(self, shop: Shop) -> None:
        shop.submit()
        late = shop.claim("silent")
        shop.store.heartbeat(late, 40, 250)
        shop.pass_seconds(LEASE_SECONDS + 0.001)
        task = shop.claim("other")
        assert (task.id, task.attempts, task.num_frames_done) == (late.id, 2, 0)
        assert shop.store.heartbeat(late, 250, 250) == "lost"
        assert not shop.store.complete(late, {"filename": "late.wav"})
        assert not shop.store.fail(late, "Late.", "late")
        assert not shop.store.cancel(late)
        assert not shop.store.release(late)
        assert shop.store.complete(task, {"filename": "good.wav"})
        assert shop.get(task).result == {"filename": "good.wav"}

    def test_a_silent_worker_that_nobody_replaced_may_still_finish(self, shop: Shop) -> None:
        shop.submit()
        task = shop.claim()
        shop.pass_seconds(LEASE_SECONDS * 10)
        assert shop.store.complete(task, {})

    def test_a_task_that_kills_its_workers_fails_after_two_attempts_and_the_next_one_runs(self, shop: Shop) -> None:
        poison = shop.submit(audio=b"poison")
        healthy = shop.submit()
        for _ in range(2):
            assert shop.claim().id == poison.id
            shop.pass_seconds(LEASE_SECONDS + 1)
        assert shop.claim().id == healthy.id
        failed = shop.get(poison)
        assert (failed.state, failed.error_code, failed.attempts) == ("failed", INTERRUPTED_CODE, 2)
        assert failed.error == "The task was interrupted in each of its 2 attempts and was given up."
        assert shop.store.audio(poison.id) is None

    def test_a_task_that_kills_its_workers_takes_none_of_those_beside_it_along(self, shop: Shop) -> None:
        tasks = [shop.submit() for _ in range(6)]
        poison = tasks[2]
        for number in (1, 2):
            assert [shop.claim(f"worker-{number}").attempts for _ in tasks] == [number] * 6
            shop.pass_seconds(LEASE_SECONDS + 1)
        late = shop.submit()
        for number, task in enumerate(tasks, 3):
            alone = shop.claim(f"worker-{number}")
            assert (alone.id, alone.attempts) == (task.id, 3)
            assert shop.store.claim(f"worker-{number}", LEASE_SECONDS) is None, "nothing runs beside it"
            if task is poison:
                shop.pass_seconds(LEASE_SECONDS + 1)
            else:
                shop.store.complete(alone, {})
        assert shop.claim().id == late.id
        assert [shop.get(task).state for task in tasks] == ["completed"] * 2 + ["failed"] + ["completed"] * 3
        assert shop.get(poison).error == "The task was interrupted in each of its 3 attempts and was given up."

    def test_a_task_that_must_run_alone_waits_for_its_workers_others_and_outlives_a_stop(self, shop: Shop) -> None:
        first, second = shop.submit(), shop.submit()
        for number in (1, 2):
            assert [shop.claim(f"worker-{number}").id for _ in range(2)] == [first.id, second.id]
            if number == 2:
                busy = shop.submit()
                assert shop.claim("busy").id == busy.id
                assert shop.store.heartbeat(shop.get(busy), 0, 0) == "held"
            shop.pass_seconds(LEASE_SECONDS + 1 if number == 1 else LEASE_SECONDS - 1)
        assert shop.store.heartbeat(shop.get(busy), 0, 0) == "held"
        shop.pass_seconds(2)
        assert shop.store.claim("busy", LEASE_SECONDS) is None
        assert shop.store.complete(shop.get(busy), {})
        alone = shop.claim("busy")
        assert (alone.id, alone.attempts) == (first.id, 3)
        assert shop.store.release(alone)
        alone = shop.claim("busy")
        assert (alone.id, alone.attempts) == (first.id, 3)
        assert shop.store.complete(alone, {})
        assert shop.claim("busy").id == second.id

    def test_a_released_task_keeps_its_place_and_its_attempts(self, shop: Shop) -> None:
        first, _ = shop.submit(), shop.submit()
        for _ in range(5):
            task = shop.claim()
            assert (task.id, task.attempts) == (first.id, 1)
            shop.store.heartbeat(task, 3, 4)
            assert shop.store.release(task)
            assert not shop.store.release(task)
            released = shop.get(first)
            assert (released.state, released.attempts, released.num_frames_done) == ("queued", 0, 0)
            assert shop.store.position(first.id) == 1

    def test_a_task_that_is_tried_again_pauses_and_uses_up_an_attempt(self, shop: Shop) -> None:
        first, second = shop.submit(), shop.submit()
        assert shop.store.release(shop.claim(), pause_seconds=10.0, count_attempt=True)
        assert (shop.get(first).state, shop.get(first).attempts) == ("queued", 1)
        assert shop.claim().id == second.id
        assert shop.store.claim("worker", LEASE_SECONDS) is None
        shop.pass_seconds(10.001)
        assert (shop.claim().id, shop.get(first).attempts) == (first.id, 2)

    @pytest.mark.parametrize("jump_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
    def test_a_task_survives_a_jump_of_the_clock_under_its_worker(self, shop: Shop, jump_seconds: float) -> None:
        shop.submit()
        task = shop.claim()
        shop.pass_seconds(jump_seconds)
        assert shop.store.heartbeat(task, 1, 2) == "held"
        assert shop.store.claim("other", LEASE_SECONDS) is None
        shop.pass_seconds(LEASE_SECONDS - 1)
        assert shop.store.claim("other", LEASE_SECONDS) is None
        assert shop.store.complete(task, {})

    @pytest.mark.parametrize("jump_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
    def test_no_jump_of_the_clock_holds_the_task_of_a_dead_worker_for_longer(
        self, shop: Shop, jump_seconds: float
    ) -> None:
        shop.submit()
        shop.claim("dead")
        shop.pass_seconds(jump_seconds + LEASE_SECONDS + 1)
        assert shop.claim("other").attempts == 2


class TestTurns:
    """Whose task is next."""

    def owners(self, shop: Shop, num_claims: int) -> str:
        return "".join(shop.claim(f"worker-{uuid.uuid4()}").owner or "-" for _ in range(num_claims))

    def test_one_task_does_not_wait_for_the_many_of_another_owner(self, shop: Shop) -> None:
        for owner in "aaaaaaab":
            shop.submit(owner=owner)
        assert self.owners(shop, 8) == "abaaaaaa"

    def test_an_owner_with_fewer_tasks_in_work_is_next(self, shop: Shop) -> None:
        for owner in "aaaabbbbbc":
            shop.submit(owner=owner)
        claimed = [shop.claim(f"worker-{number}") for number in range(5)]
        assert [task.owner for task in claimed] == ["a", "b", "c", "a", "b"]
        shop.store.complete(claimed[1], {})
        shop.store.complete(claimed[4], {})
        assert self.owners(shop, 4) == "bbab"

    def test_between_equals_the_one_is_next_whose_last_claim_is_longest_ago(self, shop: Shop) -> None:
        for owner in "aaabbbccc":
            shop.submit(owner=owner)
        order = ""
        for _ in range(9):
            task = shop.claim()
            order += task.owner or "-"
            shop.store.complete(task, {})
        assert order == "abcabcabc"

    def test_those_that_come_back_at_once_do_not_keep_out_one_with_a_long_queue(self, shop: Shop) -> None:
        for owner in "aaaabc":
            shop.submit(owner=owner)
        order = ""
        for _ in range(12):
            task = shop.claim()
            order += task.owner or "-"
            shop.store.complete(task, {})
            if task.owner != "a":
                shop.submit(owner=task.owner)
        assert order == "abc" * 4

    def test_each_owners_tasks_come_in_the_order_of_their_acceptance(self, shop: Shop) -> None:
        tasks = [shop.submit(owner="ab"[number % 3 == 0]) for number in range(12)]
        claimed = [shop.claim(f"worker-{number}") for number in range(12)]
        for owner in "ab":
            accepted = [task.id for task in tasks if task.owner == owner]
            assert [task.id for task in claimed if task.owner == owner] == accepted

    def test_tasks_without_owner_share_one_turn(self, shop: Shop) -> None:
        for owner in (None, None, None, "a", "a"):
            shop.submit(owner=owner)
        assert self.owners(shop, 5) == "-a-a-"

    def test_owners_whose_tasks_are_held_or_gone_let_the_others_pass(self, shop: Shop) -> None:
        paused = shop.submit(owner="a")
        assert shop.store.release(shop.claim(), pause_seconds=10.0)
        shop.store.request_cancel(shop.submit(owner="b").id)
        shop.submit(owner="c")
        assert self.owners(shop, 1) == "c"
        assert shop.store.claim("worker", LEASE_SECONDS) is None
        shop.pass_seconds(11)
        assert shop.claim("other").id == paused.id

    def test_what_dead_workers_held_does_not_count_as_in_work(self, shop: Shop) -> None:
        for owner in "aab":
            shop.submit(owner=owner)
        assert self.owners(shop, 2) == "ab"
        shop.pass_seconds(LEASE_SECONDS + 1)
        assert self.owners(shop, 3) == "aba"

    def test_racing_workers_give_every_owner_its_share(self, shop: Shop) -> None:
        for number in range(90):
            shop.submit(owner="a" if number < 80 else f"other-{number}")
        stores = (shop.store, shop.open_another())
        calls = [lambda i=i: stores[i % 2].claim(f"worker-{i}", LEASE_SECONDS) for i in range(20)]
        owners = [task.owner for task in in_parallel(16, calls) if task is not None]
        assert (len(owners), owners.count("a")) == (20, 10)

    def test_a_claim_from_a_long_queue_of_many_owners_is_quick(self, shop: Shop) -> None:
        for number in range(2000):
            shop.submit(owner=f"owner-{number % 500}", max_queued=2000)
        started = time.monotonic()
        claimed = [shop.claim(f"worker-{number}") for number in range(50)]
        assert (time.monotonic() - started) / 50 < 0.05
        assert len({task.owner for task in claimed}) == 50


class TestReleaseBefore:
    """Redis as the release before leaves it: a row, and nothing that says whose turn it is."""

    @pytest.fixture
    def shop(self, redis_server: RedisServer) -> Iterator[Shop]:
        clock, prefix = Clock(), f"{{{uuid.uuid4()}}}:"
        store = RedisTaskStore(redis_server.url, max_attempts=2, prefix=prefix, clock=clock)
        self.redis, self.prefix = redis.Redis.from_url(redis_server.url), prefix
        yield Shop(store, clock, lambda: store)
        store.close()
        self.redis.close()

    def forget_turns(self) -> None:
        known = ("turn", "turns", "waiting", "shared_out")
        names = [name for known in known for name in self.redis.keys(f"{self.prefix}{known}")]
        self.redis.delete(*names, *self.redis.keys(f"{self.prefix}unfinished:*"))

    def test_what_it_accepted_and_what_it_began_is_claimed_and_counts(self, shop: Shop) -> None:
        for owner in ("a", "a", "a", "b", None):
            shop.submit(owner=owner)
        running = shop.claim()
        self.forget_turns()
        with pytest.raises(TooManyTasks, match="3 of"):
            shop.submit(owner="a", max_unfinished=3)
        assert [shop.claim(f"worker-{number}").owner for number in range(4)] == ["b", None, "a", "a"]
        assert shop.store.release(running)
        assert shop.claim("again").id == running.id

    def test_what_it_ends_meanwhile_is_neither_claimed_nor_counted(self, shop: Shop) -> None:
        ended, waiting = shop.submit(owner="a"), shop.submit(owner="b")
        for name in ("unfinished", "queued"):
            self.redis.zrem(self.prefix + name, ended.id)
        self.redis.hset(f"{self.prefix}task:{ended.id}", "state", "completed")
        assert shop.claim().id == waiting.id
        assert shop.store.claim("worker", LEASE_SECONDS) is None
        shop.submit(owner="a", max_unfinished=1)


class TestFinalStates:
    def test_a_final_state_stays(self, shop: Shop) -> None:
        for end in (
            lambda task: shop.store.complete(task, {"filename": "a.wav"}),
            lambda task: shop.store.fail(task, "It failed.", "generation_failed"),
            lambda task: shop.store.cancel(task),
        ):
            shop.submit()
            task = shop.claim()
            assert end(task)
            ended = shop.get(task)
            assert ended.is_final
            assert (ended.finished, ended.lease) == (shop.clock.now, None)
            assert not shop.store.complete(task, {"filename": "b.wav"})
            assert not shop.store.fail(task, "Again.", "again")
            assert not shop.store.cancel(task)
            assert not shop.store.release(task)
            assert shop.store.heartbeat(task, 1, 1) == "lost"
            assert vars(shop.get(task)) == vars(ended)
        assert shop.store.claim("worker", LEASE_SECONDS) is None

    def test_racing_endings_give_exactly_one_final_state(self, shop: Shop) -> None:
        for _ in range(10):
            shop.submit()
            task = shop.claim()
            endings = [
                lambda task=task: shop.store.complete(task, {}),
                lambda task=task: shop.store.fail(task, "No.", "no"),
                lambda task=task: shop.store.cancel(task),
                lambda task=task: shop.store.release(task),
            ]
            assert in_parallel(16, endings * 4).count(True) == 1

    def test_cancel_works_in_every_state_and_twice(self, shop: Shop) -> None:
        queued = shop.submit(audio=b"tune")
        for _ in range(2):
            canceled = shop.store.request_cancel(queued.id)
            assert canceled is not None
            assert (canceled.state, canceled.finished) == ("canceled", shop.clock.now)
        assert shop.store.audio(queued.id) is None

        shop.submit()
        running = shop.claim()
        versions = set()
        for _ in range(2):
            asked = shop.store.request_cancel(running.id)
            assert asked is not None
            assert (asked.state, asked.cancel_requested) == ("processing", True)
            versions.add(asked.version)
        assert len(versions) == 1
        assert shop.store.heartbeat(running, 1, 2) == "canceled"
        assert shop.store.cancel(running)
        assert shop.get(running).state == "canceled"

        shop.submit()
        done = shop.claim()
        shop.store.complete(done, {"filename": "a.wav"})
        for _ in range(2):
            kept = shop.store.request_cancel(done.id)
            assert kept is not None
            assert (kept.state, kept.cancel_requested) == ("completed", False)
        assert shop.store.status().num_processing == shop.store.status().num_queued == 0

    @pytest.mark.parametrize("ending", ["complete", "fail", "release"])
    def test_a_task_whose_cancel_was_answered_ends_canceled_whatever_its_worker_says(
        self, shop: Shop, ending: str
    ) -> None:
        shop.submit()
        task = shop.claim()
        shop.store.request_cancel(task.id)
        if ending == "complete":
            assert not shop.store.complete(task, {"filename": "unwanted.wav"})
        elif ending == "fail":
            shop.store.fail(task, "It failed.", "generation_failed")
        else:
            shop.store.release(task)
        ended = shop.get(task)
        assert (ended.state, ended.result, ended.error) == ("canceled", None, None)

    def test_a_task_of_a_dead_worker_is_canceled_at_once_or_when_its_lease_ends(self, shop: Shop) -> None:
        before, after = shop.submit(), shop.submit()
        shop.claim("dead"), shop.claim("dead")
        shop.store.request_cancel(before.id)
        shop.pass_seconds(LEASE_SECONDS + 1)
        canceled = shop.store.request_cancel(after.id)
        assert canceled is not None
        assert canceled.state == "canceled"
        assert shop.store.claim("other", LEASE_SECONDS) is None
        assert (shop.get(before).state, shop.get(before).attempts) == ("canceled", 1)


class TestLists:
    def test_an_owner_pages_through_its_own_tasks_newest_first(self, shop: Shop) -> None:
        mine = [shop.submit(owner="me").id for _ in range(7)]
        shop.submit(owner="you"), shop.submit()
        seen: list[str] = []
        before = None
        while page := shop.store.page("me", before=before, limit=3):
            seen += [task.id for task in page]
            before = page[-1].number
        assert seen == mine[::-1]
        assert len(shop.store.page(None)) == 1
        assert shop.store.page("nobody") == []

    def test_position_and_status_follow_the_queue(self, shop: Shop) -> None:
        assert shop.store.status().mean_run_seconds is None
        tasks = [shop.submit() for _ in range(3)]
        assert [shop.store.position(task.id) for task in tasks] == [1, 2, 3]
        claimed = shop.claim()
        assert [shop.store.position(task.id) for task in tasks] == [None, 1, 2]
        status = shop.store.status()
        assert (status.num_queued, status.num_processing) == (2, 1)
        shop.pass_seconds(4.0)
        shop.store.complete(claimed, {})
        claimed = shop.claim()
        shop.pass_seconds(6.0)
        shop.store.complete(claimed, {})
        status = shop.store.status()
        assert (status.num_queued, status.num_processing) == (1, 0)
        assert status.mean_run_seconds == pytest.approx(5.0)

    def test_finished_tasks_expire_and_name_their_files(self, shop: Shop) -> None:
        old = [shop.submit(owner="me", idempotency_key=str(i)) for i in range(4)]
        shop.store.complete(shop.claim(), {"filename": "old.wav"})
        shop.store.fail(shop.claim(), "No.", "no")
        shop.store.request_cancel(old[2].id)
        shop.pass_seconds(100)
        young = shop.submit(owner="me")
        shop.claim()
        shop.store.complete(shop.claim(), {"filename": "young.wav"})
        assert shop.store.expire(shop.clock.now - 50) == ["old.wav"]
        assert shop.store.expire(shop.clock.now - 50) == []
        assert [task.id for task in shop.store.page("me")] == [young.id, old[3].id]
        assert shop.submit(owner="me", idempotency_key="0").id != old[0].id, "its key is free again"

    def test_files_of_tasks_that_were_forgotten_are_named_though_the_store_fails_then(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (sqlite_store, redis_store):
            monkeypatch.setattr(module, "EXPIRE_BATCH", 1)
        for name in ("a.wav", "b.wav"):
            shop.submit()
            shop.store.complete(shop.claim(), {"filename": name})
            shop.pass_seconds(1)
        inner: Any = shop.store
        of, name = (inner._file, "write") if isinstance(inner, SqliteTaskStore) else (inner, "_run")
        change, num_left = getattr(of, name), 1

        def change_once(*arguments: Any, **options: Any) -> Any:
            nonlocal num_left
            if not num_left:
                raise StorageUnavailable("The store failed.")
            num_left -= 1
            return change(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(of, name, change_once)
            assert shop.store.expire(shop.clock.now) == ["a.wav"]
            with pytest.raises(StorageUnavailable):
                shop.store.expire(shop.clock.now)
        assert shop.store.expire(shop.clock.now) == ["b.wav"]

    def test_more_tasks_than_one_transaction_takes_expire_in_one_call(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (sqlite_store, redis_store):
            monkeypatch.setattr(module, "EXPIRE_BATCH", 5)
        for _ in range(12):
            shop.store.request_cancel(shop.submit().id)
        shop.submit()
        shop.pass_seconds(1)
        assert shop.store.expire(shop.clock.now) == []
        assert len(shop.store.page(None, limit=10)) == 1


class TestChanges:
    def test_a_waiter_is_woken_by_every_kind_of_change(self, shop: Shop) -> None:
        task = shop.submit()
        claimed: list[Task] = []
        changes: list[Callable[[], object]] = [
            lambda: claimed.append(shop.claim()),
            lambda: shop.store.heartbeat(claimed[-1], 5, 250),
            lambda: shop.store.release(claimed[-1]),
            lambda: claimed.append(shop.claim()),
            lambda: shop.store.request_cancel(task.id),
            lambda: shop.store.complete(claimed[-1], {}),
        ]
        states = []
        with ThreadPoolExecutor(1) as pool:
            for change in changes:
                version = shop.get(task).version
                waiting = pool.submit(shop.store.wait_for_change, task.id, version, 20.0)
                change()
                seen = waiting.result(timeout=20)
                assert seen is not None
                assert seen.version == version + 1
                states.append(seen.state)
        assert states == ["processing", "processing", "queued", "processing", "processing", "canceled"]

    def test_a_waiter_sees_the_change_by_another_process(self, shop: Shop) -> None:
        task = shop.submit()
        other = shop.open_another()
        timer = threading.Timer(0.05, other.request_cancel, (task.id,))
        timer.start()
        seen = shop.store.wait_for_change(task.id, task.version, 20.0)
        timer.join()
        assert seen is not None
        assert seen.state == "canceled"

    def test_a_waiter_gets_the_unchanged_task_after_its_time(self, shop: Shop) -> None:
        task = shop.submit()
        seen = shop.store.wait_for_change(task.id, task.version, 0.05)
        assert seen is not None
        assert seen.version == task.version


class TestWebhooks:
    def finish(self, shop: Shop, **fields: Any) -> Task:
        shop.submit(**{"webhook_url": "https://example.org/hook", **fields})
        task = shop.claim()
        assert shop.store.complete(task, {"filename": "a.wav"})
        return shop.get(task)

    def test_a_webhook_waits_from_the_final_state_until_it_is_ended(self, shop: Shop) -> None:
        self.finish(shop, webhook_url=None)
        shop.submit(webhook_url="https://example.org/hook")
        assert shop.store.claim_webhook(10.0) is None
        shop.store.fail(shop.claim(), "No.", "no")
        claimed = shop.open_another().claim_webhook(10.0)
        assert claimed is not None
        assert (claimed.state, claimed.webhook_url, claimed.webhook_attempts) == (
            "failed",
            "https://example.org/hook",
            1,
        )
        assert shop.store.claim_webhook(10.0) is None
        shop.store.end_webhook(claimed)
        shop.pass_seconds(HOUR_SECONDS)
        assert shop.store.claim_webhook(10.0) is None
        assert shop.get(claimed).version == claimed.version

    def test_a_canceled_task_tells_its_webhook_too(self, shop: Shop) -> None:
        task = shop.submit(webhook_url="https://example.org/hook")
        shop.store.request_cancel(task.id)
        claimed = shop.store.claim_webhook(10.0)
        assert claimed is not None
        assert (claimed.id, claimed.state) == (task.id, "canceled")

    def test_a_webhook_of_a_dead_sender_comes_again(self, shop: Shop) -> None:
        task = self.finish(shop)
        assert shop.store.claim_webhook(10.0) is not None
        shop.pass_seconds(11)
        again = shop.store.claim_webhook(10.0)
        assert again is not None
        assert (again.id, again.webhook_attempts) == (task.id, 2)

    def test_a_paused_webhook_lets_the_others_pass(self, shop: Shop) -> None:
        first, second = self.finish(shop), self.finish(shop)
        claimed = shop.store.claim_webhook(10.0)
        assert claimed is not None
        shop.store.pause_webhook(claimed, 60.0)
        other = shop.store.claim_webhook(10.0)
        assert other is not None
        assert {claimed.id, other.id} == {first.id, second.id}
        shop.store.end_webhook(other)
        assert shop.store.claim_webhook(10.0) is None
        shop.pass_seconds(61)
        again = shop.store.claim_webhook(10.0)
        assert again is not None
        assert (again.id, again.webhook_attempts) == (claimed.id, 2)

    def test_webhooks_of_busy_hosts_are_passed_over(self, shop: Shop) -> None:
        first = self.finish(shop, webhook_url="https://slow.example/1")
        shop.pass_seconds(1)
        self.finish(shop, webhook_url="http://Slow.example:8080/2?a=b")
        shop.pass_seconds(1)
        last = self.finish(shop, webhook_url="https://fast.example/")
        claimed = shop.store.claim_webhook(10.0, ["slow.example", "other.example"])
        assert claimed is not None
        assert claimed.id == last.id
        assert shop.store.claim_webhook(10.0, ["slow.example"]) is None
        claimed = shop.store.claim_webhook(10.0)
        assert claimed is not None
        assert claimed.id == first.id

    def test_an_expired_task_tells_nobody(self, shop: Shop) -> None:
        task = self.finish(shop)
        shop.pass_seconds(HOUR_SECONDS)
        shop.store.expire(shop.clock.now)
        assert shop.store.claim_webhook(10.0) is None
        shop.store.pause_webhook(task, 0.0)
        assert shop.store.claim_webhook(10.0) is None
