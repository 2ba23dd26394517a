"""Tasks under faults, with a real gunicorn that is killed, stopped and starved: nothing accepted is lost or done twice.

Quick ones always run; the long ones are marked `fault` (`make test-faults`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from audiocraft_api.audio.convert import ffmpeg_executable
from support.served import Server, free_port, serve, wait_until

FAULTY = "support.faulty:app"
REQUEST = {"prompt": "solo cello", "duration": 1}
LEASE_SECONDS = 1.0
FINAL = ("completed", "failed", "canceled")


class RestartableService:
    """A server that restarts on the same port and with the same files after it was killed."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.url = ""
        self._port = free_port()
        self._settings = {"task_lease_seconds": LEASE_SECONDS, "max_queued_tasks": 1000, "log_level": "WARNING"}
        self._settings |= settings
        self._serving: AbstractContextManager[Server] | None = None
        self.server: Server = self.start()

    def start(self) -> Server:
        self._serving = serve(self.directory, FAULTY, self._port, **self._settings)
        self.server = self._serving.__enter__()
        self.url = self.server.url
        return self.server

    def stop(self) -> None:
        if self._serving is not None:
            self._serving.__exit__(None, None, None)
            self._serving = None

    def kill_worker(self) -> None:
        """Kill the process that serves; its master starts another."""
        if pid := self.server.worker_pid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_everything_and_restart(self) -> None:
        self.server.kill()
        self.stop()
        self.start()

    def pause_generation(self) -> None:
        """Keep generations from finishing until `resume_generation`."""
        (self.directory / "hold").touch()

    def resume_generation(self) -> None:
        (self.directory / "hold").unlink()

    def submit(self, key: str | None = None, **fields: Any) -> str:
        """Submit as a careful client does: with a key, and again until there is an answer."""
        until = time.monotonic() + 60
        while True:
            with suppress(requests.RequestException):
                headers = {"Idempotency-Key": key} if key else {}
                response = self.server.post("/generate-async", json=REQUEST | fields, headers=headers, timeout=10)
                if response.status_code == 202:
                    return str(response.json()["task_id"])
                assert response.status_code == 503, response.text
            assert key, "the server was meant to be there"
            assert time.monotonic() < until
            threading.Event().wait(0.1)

    def get_task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get(f"/tasks/{task_id}").json()
        return found

    def attempts(self, task_id: str) -> int:
        """Return how often a task has been begun, 0 while the server is down."""
        with suppress(requests.RequestException):
            return int(self.get_task(task_id)["attempts"])
        return 0

    def wait_for(self, task_id: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
        """Poll through every outage until the task is in one of `states`, by default a final one."""
        until = time.monotonic() + seconds
        while True:
            with suppress(requests.RequestException):
                task = self.get_task(task_id)
                if task["state"] in (states or FINAL):
                    return task
            assert time.monotonic() < until, "the task did not get there in time"
            threading.Event().wait(0.05)


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RestartableService]:
    marker = request.node.get_closest_marker("settings")
    service = RestartableService(tmp_path, **(marker.kwargs if marker else {}))
    yield service
    (tmp_path / "hold").unlink(missing_ok=True)
    service.stop()


def survive_kills(service: RestartableService, num_tasks: int, num_kills: int) -> None:
    """Submit tasks while the server is killed again and again; every one must be completed, and once."""
    seed = random.randrange(2**32)
    print(f"kills by random seed {seed}")
    chance = random.Random(seed)
    with ThreadPoolExecutor(4) as pool:
        submitted = [pool.submit(service.submit, f"task-{number}", seed=number) for number in range(num_tasks)]
        for number in range(num_kills):
            threading.Event().wait(chance.uniform(0.05, 0.9))
            if number % 3 == 2:
                service.kill_everything_and_restart()
            else:
                service.kill_worker()
        task_ids = [task.result() for task in submitted]
    assert len(set(task_ids)) == num_tasks
    done = [service.wait_for(task_id, seconds=120) for task_id in task_ids]
    service.kill_everything_and_restart()
    assert [service.wait_for(task_id) for task_id in task_ids] == done  # a final state stays
    assert [task["status"] for task in done] == ["completed"] * num_tasks
    assert [task["seed"] for task in done] == list(range(num_tasks))
    assert len({task["audio_url"] for task in done}) == num_tasks
    listed = service.server.get("/tasks?limit=200").json()
    num_listed = len(listed["tasks"])
    while listed["next_cursor"]:
        listed = service.server.get(f"/tasks?limit=200&cursor={listed['next_cursor']}").json()
        num_listed += len(listed["tasks"])
    assert num_listed == num_tasks
    for task in done:
        assert service.server.get(task["audio_url"]).status_code == 200
    num_again = sum(task["attempts"] > 1 for task in done)
    print(f"faults survived: {num_kills}/{num_kills} ({num_tasks} tasks completed once, {num_again} begun again)")


@pytest.mark.settings(task_attempts=10)
def test_three_kills_lose_no_task_and_finish_none_twice(service: RestartableService) -> None:
    survive_kills(service, 30, 3)


@pytest.mark.fault
@pytest.mark.settings(task_attempts=10)
def test_twenty_five_kills_lose_no_task_and_finish_none_twice(service: RestartableService) -> None:
    survive_kills(service, 300, 25)


@pytest.mark.timing
def test_after_everything_is_killed_unfinished_work_runs_again_within_the_lease_and_five_seconds(
    service: RestartableService,
) -> None:
    service.pause_generation()
    task_ids = [service.submit() for _ in range(12)]
    for task_id in task_ids[:8]:
        service.wait_for(task_id, "processing")
    service.kill_everything_and_restart()
    restarted = time.monotonic()
    service.resume_generation()
    done = [service.wait_for(task_id) for task_id in task_ids]
    seconds = time.monotonic() - restarted
    assert [task["status"] for task in done] == ["completed"] * 12
    assert [task["attempts"] for task in done] == [2] * 8 + [1] * 4
    assert seconds < LEASE_SECONDS + 5
    print(f"faults survived: 1/1 (12 tasks done {seconds:.1f} s after the restart)")


# A busy machine may give a process nothing for a second: neither the lease nor what is left of the grace is as short.
@pytest.mark.timing
@pytest.mark.settings(graceful_timeout_seconds=5, task_concurrency=2, task_lease_seconds=10)
def test_sigterm_gives_back_what_does_not_finish_and_loses_nothing(service: RestartableService) -> None:
    service.pause_generation()
    task_ids = [service.submit() for _ in range(4)]
    for task_id in task_ids[:2]:
        service.wait_for(task_id, "processing")
    started = time.monotonic()
    service.server.process.terminate()
    service.server.process.terminate()  # an impatient operator
    assert service.server.process.wait(20) == 0
    seconds = time.monotonic() - started
    assert seconds < 5 + 1
    service.stop()
    service.resume_generation()
    service.start()
    done = [service.wait_for(task_id) for task_id in task_ids]
    assert [(task["status"], task["attempts"]) for task in done] == [("completed", 1)] * 4
    print(f"faults survived: 1/1 (stopped in {seconds:.1f} s of 5 s grace)")


@pytest.mark.fault
@pytest.mark.settings(graceful_timeout_seconds=20, task_concurrency=1)
def test_sigterm_lets_running_tasks_finish(service: RestartableService) -> None:
    service.pause_generation()
    running, queued = service.submit(), service.submit()
    service.wait_for(running, "processing")
    events = requests.get(f"{service.url}/tasks/{running}/events", stream=True, timeout=30)
    assert events.status_code == 200
    service.server.process.terminate()
    assert b"event" not in events.content  # the stream ends by itself
    service.resume_generation()
    assert service.server.process.wait(20) == 0
    with sqlite3.connect(service.directory / "tasks.sqlite3") as db:
        states = dict(db.execute("SELECT id, state FROM tasks").fetchall())
    assert states == {running: "completed", queued: "queued"}
    service.stop()
    service.start()
    assert service.wait_for(queued)["attempts"] == 1
    print("faults survived: 1/1 (the running task finished, the queued one after the restart)")


@pytest.mark.parametrize("num_attempts", [1, pytest.param(2, marks=pytest.mark.fault)], ids=["in time", "too late"])
def test_sigterm_while_audio_is_encoded_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_attempts: int
) -> None:
    hold, begun = tmp_path / "hold-ffmpeg", tmp_path / "begun"
    slow = tmp_path / "bin" / "ffmpeg"
    slow.parent.mkdir()
    wait = f"touch '{begun}'; while [ -e '{hold}' ]; do sleep 0.05; done"
    slow.write_text(f"#!/bin/sh\n{wait}\nexec '{ffmpeg_executable()}' \"$@\"\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
    hold.touch()
    service = RestartableService(tmp_path, graceful_timeout_seconds=3, log_level="INFO")
    try:
        task_id = service.submit(output_format="mp3")
        wait_until(begun.exists)
        started = time.monotonic()
        service.server.process.terminate()
        if num_attempts == 1:
            wait_until(lambda: "Draining" in service.server.log)
            hold.unlink()
        assert service.server.process.wait(20) == 0
        seconds = time.monotonic() - started
        assert seconds < 3 + 1
        hold.unlink(missing_ok=True)
        service.stop()
        service.start()
        done = service.wait_for(task_id)
        assert (done["status"], done["attempts"]) == ("completed", num_attempts)
        assert len(list((tmp_path / "audio").glob("*.mp3"))) == 1
    finally:
        hold.unlink(missing_ok=True)
        service.stop()
    print(f"faults survived: 1/1 (stopped in {seconds:.1f} s of 3 s grace)")


def test_a_task_that_kills_its_server_fails_after_two_attempts_and_the_next_one_runs(
    service: RestartableService,
) -> None:
    poison = service.submit(prompt="poison")
    failed = service.wait_for(poison)
    assert (failed["status"], failed["code"], failed["attempts"]) == ("failed", "task_interrupted", 2)
    assert service.wait_for(service.submit("next"))["attempts"] == 1
    print("faults survived: 2/2 (kills by one task)")


@pytest.mark.fault
def test_a_task_that_kills_its_server_takes_none_of_those_beside_it_along(service: RestartableService) -> None:
    service.pause_generation()
    innocent = [service.submit(seed=number) for number in range(5)]
    for task_id in innocent:
        service.wait_for(task_id, "processing")
    poison = service.submit("poison", prompt="poison")
    # Twice all are lost together; then each runs alone, the oldest first.
    wait_until(lambda: service.attempts(innocent[0]) == 3)
    service.resume_generation()
    assert [service.wait_for(task_id)["status"] for task_id in innocent] == ["completed"] * 5
    failed = service.wait_for(poison)
    assert (failed["status"], failed["code"], failed["attempts"]) == ("failed", "task_interrupted", 3)
    print("faults survived: 3/3 (kills by one task among others)")


def test_faults_of_the_model_end_in_a_sentence_and_the_next_task_runs(service: RestartableService) -> None:
    expected = {
        "no model": ("failed", "model_unavailable", 2),
        "out of memory": ("failed", "out_of_memory", 2),
        "out of memory once": ("completed", None, 2),
        "not a number": ("failed", "conversion_failed", 1),
        "solo cello": ("completed", None, 1),
    }
    task_ids = {prompt: service.submit(prompt=prompt) for prompt in expected}
    found = {prompt: service.wait_for(task_id) for prompt, task_id in task_ids.items()}
    assert {prompt: (task["status"], task.get("code"), task["attempts"]) for prompt, task in found.items()} == expected
    assert all(task["error"].endswith(".") for task in found.values() if task["status"] == "failed")
    print(f"faults survived: {len(expected) - 1}/{len(expected) - 1} (of the model)")


def test_a_hundred_parallel_posts_with_one_key_make_one_task(service: RestartableService) -> None:
    with ThreadPoolExecutor(32) as pool:
        task_ids = set(pool.map(lambda _: service.submit("one-key"), range(100)))
    assert len(task_ids) == 1
    assert len(service.server.get("/tasks").json()["tasks"]) == 1


def test_a_client_that_leaves_before_it_knows_its_task_cancels_it(service: RestartableService) -> None:
    service.pause_generation()
    for headers, state in (({}, "canceled"), ({"Idempotency-Key": "mine"}, "processing")):
        body = json.dumps(REQUEST)
        lines = ["POST /generate HTTP/1.1", "Host: a", "Content-Type: application/json", "Prefer: wait=30"]
        lines += [f"{name}: {value}" for name, value in headers.items()] + [f"Content-Length: {len(body)}", "", body]
        with service.server.connect() as connection:
            connection.sendall("\r\n".join(lines).encode())
            wait_until(lambda: service.server.num_running() == 1)
            (task, *_) = service.server.get("/tasks").json()["tasks"]
        assert service.wait_for(task["task_id"], state)["state"] == state
    service.resume_generation()
    assert service.wait_for(task["task_id"])["status"] == "completed"


@pytest.mark.fault
@pytest.mark.settings(task_concurrency=1)
def test_cancel_works_at_every_state_and_twice(service: RestartableService) -> None:
    num_canceled = 0
    service.pause_generation()
    for _ in range(10):
        running, queued = service.submit(), service.submit()
        service.wait_for(running, "processing")
        for task_id in (queued, queued, running, running):
            assert requests.delete(f"{service.url}/tasks/{task_id}", timeout=10).status_code in (200, 202)
        started = time.monotonic()
        for task_id in (running, queued):
            assert service.wait_for(task_id)["status"] == "canceled"
            assert requests.delete(f"{service.url}/tasks/{task_id}", timeout=10).json()["status"] == "canceled"
            num_canceled += 1
        assert time.monotonic() - started < 2
    service.kill_everything_and_restart()
    service.resume_generation()
    assert service.wait_for(service.submit("next"))["status"] == "completed"
    assert not list((service.directory / "audio").glob("*.wav"))[1:]
    print(f"faults survived: {num_canceled}/20 (cancels)")


@pytest.mark.fault
def test_a_locked_database_is_503_and_harms_nothing_else(service: RestartableService) -> None:
    task_id = service.submit()
    service.wait_for(task_id)
    db = sqlite3.connect(service.directory / "tasks.sqlite3", isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(service.server.post, "/generate-async", json=REQUEST) for _ in range(4)]
        for _ in range(5):
            started = time.monotonic()
            assert service.server.get("/health").status_code == 200
            assert time.monotonic() - started < 1
        assert service.server.post("/generate", json=REQUEST).status_code == 200
        for post in posts:
            assert (post.result().status_code, post.result().json()["code"]) == (503, "storage_unavailable")
            assert "Retry-After" in post.result().headers
    db.execute("ROLLBACK")
    db.close()
    assert service.wait_for(service.submit("next"))["status"] == "completed"
    print("faults survived: 4/4 (posts to a locked database)")


def test_audio_that_was_deleted_is_410_also_after_a_restart(service: RestartableService) -> None:
    done = service.wait_for(service.submit())
    (service.directory / "audio" / done["result"]["filename"]).unlink()
    for _ in range(2):
        response = service.server.get(f"/tasks/{done['task_id']}")
        assert (response.status_code, response.json()["code"]) == (410, "audio_gone")
        assert service.server.get(done["audio_url"]).status_code == 404
        service.kill_everything_and_restart()
