"""Rate limits under load: exactness in one process and in three, overhead, and the latency of refusals."""

from __future__ import annotations

import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from bench.load import Connection, run_load
from bench.server import serve

INSTANT = "bench.instant_app:create_app()"
BODY = {"prompt": "limits", "model_size": "demo", "duration": 1, "output_format": "flac"}
LIMIT, NUM_POSTS = 50, 400
NUM_CONNECTIONS = 20  # to each server
NUM_SERVERS = 3
NUM_CLIENTS, CLIENT_SECONDS = 500, 2.0  # each client retries at this interval, as `Retry-After` permits
MANY = 10_000
ALL_LIMITS = {
    "requests_per_minute": MANY,
    "address_requests_per_minute": MANY,
    "requests_per_day": MANY,
    "audio_seconds_per_day": MANY,
    "concurrent_requests": NUM_CONNECTIONS,
}


def exact_in_memory() -> dict[str, object]:
    """Send `NUM_POSTS` concurrent requests of one caller to one process that permits `LIMIT`."""
    with serve(INSTANT, requests_per_minute=LIMIT, max_synchronous_requests=NUM_CONNECTIONS) as (address, _):
        statuses = run_load(address, _post, num_connections=NUM_CONNECTIONS, num_requests=NUM_POSTS).statuses
    assert set(statuses) == {200, 429}, statuses
    return {"limit_memory_accepted": statuses[200]}


def exact_in_redis() -> dict[str, object]:
    """Send the same requests to three processes that share a Redis server; then again, and kill Redis halfway."""
    with _redis() as redis, _servers(redis.url, LIMIT) as addresses:
        statuses = _race(addresses)
    assert set(statuses) == {200, 429}, statuses
    with _redis() as redis, _servers(redis.url, LIMIT) as addresses:
        killed = _race(addresses, after_each=Countdown(LIMIT // 2, redis.kill))
    return {
        "limit_redis_accepted": statuses[200],
        # Without Redis each process counts for itself: at most the limit per process.
        "limit_redis_killed_accepted": killed[200],
        "limit_redis_killed_errors": sum(num for status, num in killed.items() if status not in (200, 429)),
    }


def overhead(num_requests: int) -> dict[str, object]:
    """Time the same request with all limits and without any, alternating, so that the conditions are the same."""
    with ExitStack() as stack:
        redis = stack.enter_context(_redis())
        shared = {"state_backend": "redis", "redis_url": redis.url}
        bare, limited, bare_shared, limited_shared = (
            Connection(stack.enter_context(serve(INSTANT, **settings))[0])
            for settings in ({}, ALL_LIMITS, shared, ALL_LIMITS | shared)
        )
        latencies: dict[Connection, list[float]] = {each: [] for each in (bare, limited, bare_shared, limited_shared)}
        for number in range(num_requests + 5):
            for connection, seconds in latencies.items():
                began = time.perf_counter()
                status = _post(connection, number)
                assert status == 200, status
                if number >= 5:  # after the warm-up
                    seconds.append(time.perf_counter() - began)
    medians = {connection: 1e3 * statistics.median(seconds) for connection, seconds in latencies.items()}
    return {
        "limits_overhead_ms": medians[limited] - medians[bare],
        "limits_overhead_redis_ms": medians[limited_shared] - medians[bare_shared],
    }


def refusals(seconds: float) -> dict[str, object]:
    """Let 500 clients retry after the only request permitted per minute has been made."""
    rate = NUM_CLIENTS / CLIENT_SECONDS
    with serve(INSTANT, **ALL_LIMITS | {"requests_per_minute": 1}) as (address, _):
        assert _post(Connection(address), 0) == 200
        latencies: list[float] = []
        start = time.perf_counter() + 1.0

        def send(connection: Connection, index: int) -> int:
            time.sleep(max(start + index / rate - time.perf_counter(), 0))
            began = time.perf_counter()
            status = _post(connection, index)
            latencies.append(time.perf_counter() - began)
            return status

        statuses = run_load(address, send, num_connections=NUM_CLIENTS, num_requests=round(seconds * rate)).statuses
    assert set(statuses) == {429}, statuses
    return {"limit_refusal_p99_ms": 1e3 * sorted(latencies)[int(0.99 * len(latencies))]}


class Countdown:
    """Calls `callback` once, at the `number`-th call."""

    def __init__(self, number: int, callback: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._left = number
        self._callback = callback

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            is_over = self._left == 0
        if is_over:
            self._callback()


class Redis:
    """A Redis server for one measurement."""

    def __init__(self, directory: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        options = f"--bind 127.0.0.1 --port {port} --dir {directory} --appendonly yes"
        self._process = subprocess.Popen(["redis-server", *options.split()], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._log = self._process.stdout
        assert any("Ready to accept connections" in line for line in self._log), "Redis did not start"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@contextmanager
def _redis() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory() as directory:
        redis = Redis(directory)
        try:
            yield redis
        finally:
            redis.kill()


@contextmanager
def _servers(redis_url: str, limit: int) -> Iterator[list[tuple[str, int]]]:
    settings = {"state_backend": "redis", "redis_url": redis_url, "max_synchronous_requests": NUM_CONNECTIONS}
    with ExitStack() as stack:
        yield [
            stack.enter_context(serve(INSTANT, requests_per_minute=limit, **settings))[0] for _ in range(NUM_SERVERS)
        ]


def _race(addresses: list[tuple[str, int]], after_each: Countdown | None = None) -> Counter[int]:
    def send(connection: Connection, index: int) -> int:
        status = _post(connection, index)
        if after_each:
            after_each()
        return status

    def load(address: tuple[str, int]) -> Counter[int]:
        num_requests = NUM_POSTS // len(addresses)
        return run_load(address, send, num_connections=NUM_CONNECTIONS, num_requests=num_requests).statuses

    with ThreadPoolExecutor(len(addresses)) as pool:
        return sum(pool.map(load, addresses), Counter())


def _post(connection: Connection, _: int) -> int:
    return connection.post("/generate", BODY)[0]
