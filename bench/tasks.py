"""Tasks under load: durable submission, polling while the engine is busy, a full queue, idle connections, a soak."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from bench.load import Connection, run_load
from bench.server import serve

INSTANT, PAUSED = "bench.instant_app:create_app()", "bench.instant_app:create_paused_app()"
BODY = {"prompt": "load", "model_size": "demo", "duration": 1, "output_format": "flac"}
NUM_CONNECTIONS = 32
MAX_QUEUED = 50  # in the measurement of a full queue
NUM_IDLE, NUM_STALLED = 100, 50
STALLED = (
    b"POST /generate-async HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
)
DEADLINE_SECONDS = 300.0
WARM_UP_SHARE = 0.3  # of a soak before memory is first read: every thread has run by then
MIB = 2**20


def accepts(num_tasks: int) -> dict[str, object]:
    """Submit tasks that never end; each is on disk when its response arrives."""
    with serve(PAUSED, max_queued_tasks=num_tasks) as (address, _):
        result = run_load(address, _submit, num_connections=NUM_CONNECTIONS, num_requests=num_tasks)
    assert set(result.statuses) == {202}, result.statuses
    return {"accepts_per_second": result.requests_per_second, "accepts_p99_ms": 1e3 * result.percentile(0.99)}


def polls(seconds: float) -> dict[str, object]:
    """Poll a task that the `demo` model is running."""
    with serve() as (address, _):
        body = {"prompt": "busy", "model_size": "demo", "duration": 30}
        connection = Connection(address)
        status, _ = connection.post("/generate", {**body, "duration": 1})  # loads the model
        assert status == 200, status
        task_ids = [str(connection.post("/generate-async", body)[1]["task_id"])]
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.wait(0.1):
                if json.loads(connection.request("GET", f"/tasks/{task_ids[-1]}")[1])["status"] != "processing":
                    task_ids.append(str(connection.post("/generate-async", body)[1]["task_id"]))
            connection.request("DELETE", f"/tasks/{task_ids[-1]}")

        busy = threading.Thread(target=keep_busy)
        busy.start()
        result = run_load(
            address,
            lambda connection, _: connection.request("GET", f"/tasks/{task_ids[-1]}")[0],
            num_connections=NUM_CONNECTIONS,
            seconds=seconds,
        )
        stop.set()
        busy.join()
    assert set(result.statuses) == {200}, result.statuses
    return {"polls_per_second": result.requests_per_second, "polls_p99_ms": 1e3 * result.percentile(0.99)}


def full_queue(num_posts: int) -> dict[str, object]:
    """Submit more tasks than the queue accepts while none of them ends."""
    with serve(PAUSED, max_queued_tasks=MAX_QUEUED, task_concurrency=1) as (address, pid):
        connection = Connection(address)
        _submit(connection, 0)
        _await_queue(connection, waiting=0, running=1)
        before = _memory_bytes(pid)
        result = run_load(address, _submit, num_connections=NUM_CONNECTIONS // 2, num_requests=num_posts)
        growth = _memory_bytes(pid) - before
    assert set(result.statuses) == {202, 503}, result.statuses
    return {
        "full_queue_accepted": result.statuses[202],
        "full_queue_refused": result.statuses[503],
        "full_queue_p99_ms": 1e3 * result.percentile(0.99),
        "full_queue_max_ms": 1e3 * result.percentile(1.0),
        "full_queue_memory_mib": growth / MIB,
    }


def idle_connections(num_requests: int) -> dict[str, object]:
    """Request `/health` while other connections are idle or stalled in the middle of a request."""
    with serve(INSTANT) as (address, _), ExitStack() as opened:
        for number in range(NUM_IDLE + NUM_STALLED):
            connection = opened.enter_context(socket.create_connection(address))
            if number >= NUM_IDLE:
                connection.sendall(STALLED)

        def send(_connection: Connection, _: int) -> int:
            fresh = Connection(address)  # a new client
            status = fresh.request("GET", "/health")[0]
            fresh.close()
            return status

        result = run_load(address, send, num_connections=1, num_requests=num_requests)
    assert set(result.statuses) == {200}, result.statuses
    return {"idle_connections_health_max_ms": 1e3 * result.percentile(1.0)}


def soak(num_tasks: int) -> dict[str, object]:
    """Run tasks to completion and measure what has grown since the first of them."""
    with serve(INSTANT, max_queued_tasks=num_tasks) as (address, pid):
        connection = Connection(address)

        def work(num: int) -> dict[str, int]:
            result = run_load(address, _submit, num_connections=NUM_CONNECTIONS, num_requests=num)
            assert set(result.statuses) == {202}, result.statuses
            _await_queue(connection, waiting=0, running=0)
            return _resource_usage(pid)

        began = time.perf_counter()
        num_first = int(num_tasks * WARM_UP_SHARE)
        before = work(num_first)
        after = work(num_tasks - num_first)
        seconds = time.perf_counter() - began
        files = sum(1 for _ in _audio_dir(pid).iterdir())
    return {
        "soak_tasks_per_second": num_tasks / seconds,
        "soak_memory_growth": after["memory"] / before["memory"] - 1,
        "soak_files_left_over": files - num_tasks,
        "soak_threads_left_over": after["threads"] - before["threads"],
        "soak_descriptors_left_over": after["descriptors"] - before["descriptors"],
    }


def _submit(connection: Connection, _: int) -> int:
    return connection.post("/generate-async", BODY)[0]


def _await_queue(connection: Connection, *, waiting: int, running: int) -> None:
    """Return once `/health` reports these counts twice in a row; its figures are up to a second old."""
    num_seen, until = 0, time.monotonic() + DEADLINE_SECONDS
    while num_seen < 2:
        assert time.monotonic() < until, "the queue did not reach the expected state in time"
        time.sleep(1.1)
        queue = json.loads(connection.request("GET", "/health")[1])["queue"]
        num_seen = num_seen + 1 if queue == {"waiting": waiting, "running": running} else 0


def _resource_usage(pid: int) -> dict[str, int]:
    return {
        "memory": _memory_bytes(pid),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _audio_dir(pid: int) -> Path:
    variables = dict(line.partition("=")[::2] for line in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return Path(variables["AUDIOCRAFT_API_AUDIO_DIR"])
