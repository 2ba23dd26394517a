"""The service's own share of a generation, cached results, and `/health` while the engine is busy."""

from __future__ import annotations

import statistics
import threading

from bench.load import Connection, run_load
from bench.server import serve


def overhead(num_requests: int) -> dict[str, float]:
    """Time `POST /generate` of 5 s with an instant engine: HTTP, validation, conversion and storage."""
    figures = {}
    with serve("bench.instant_app:create_app()") as (address, _):
        for output_format in ("wav", "mp3"):
            body = {"prompt": "overhead", "model_size": "demo", "duration": 5, "output_format": output_format}

            def send(connection: Connection, _: int, body: dict[str, object] = body) -> int:
                return connection.post("/generate", body)[0]

            run_load(address, send, num_connections=1, num_requests=5)  # warm-up
            result = run_load(address, send, num_connections=1, num_requests=num_requests)
            assert set(result.statuses) == {200}, result.statuses
            figures[f"service_overhead_{output_format}_ms"] = 1e3 * statistics.median(result.latencies)
    return figures


def cached_result(num_requests: int) -> dict[str, float]:
    """Time `POST /generate` of 5 s as MP3 for a cached result; each response has its own file."""
    body = {"prompt": "known", "model_size": "demo", "duration": 5, "seed": 7, "output_format": "mp3"}
    with serve(result_cache_entries=10) as (address, _):
        first = Connection(address).post("/generate", body)
        assert first[0] == 200, first

        def send(connection: Connection, _: int) -> int:
            status, response = connection.post("/generate", body)
            assert response["cached"], response
            return status

        result = run_load(address, send, num_connections=1, num_requests=num_requests)
    assert set(result.statuses) == {200}, result.statuses
    return {"cached_answer_ms": 1e3 * statistics.median(result.latencies)}


def health_under_load(seconds: float) -> dict[str, float]:
    """Load `GET /health` over 32 connections while generations run continuously."""
    with serve() as (address, _):
        body = {"prompt": "busy", "model_size": "demo", "duration": 30}
        connection = Connection(address)
        status, _ = connection.post("/generate", {**body, "duration": 1})  # loads the model
        assert status == 200, status
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                connection.post("/generate", body)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        result = run_load(address, lambda c, _: c.request("GET", "/health")[0], num_connections=32, seconds=seconds)
        stop.set()
        busy.join()
    assert set(result.statuses) == {200}, result.statuses
    return {"health_rps": result.requests_per_second, "health_p99_ms": 1e3 * result.percentile(0.99)}
