"""Traces: a span for each request with spans of its steps, linked across machines. A dead collector delays nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from audiocraft_api.core.errors import GenerationFailed
from support.celery_worker import CeleryProcess
from support.collector import Collector, attributes
from support.fakes import FakeEngine
from support.http import generate
from support.redis_server import RedisServer
from support.served import ROOT, free_port, serve, wait_until

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.fixture(autouse=True)
def _short_export_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_a_request_is_a_span_with_its_steps_as_children(collector: Collector, make_app: Callable[..., Flask]) -> None:
    client = make_app(otlp_endpoint=collector.url).test_client()
    response = client.post(
        "/generate",
        json={"prompt": "my secret song", "duration": 1},
        headers={"traceparent": TRACEPARENT, "X-Request-ID": "mine"},
    )
    assert response.status_code == 200
    wait_until(lambda: len(collector.spans) == 5)
    (server,) = collector.named("POST /generate")
    assert server.kind == Span.SPAN_KIND_SERVER
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "audiocraft.request_id": "mine",
    }
    steps = [collector.named(name)[0] for name in ("queue wait", "decode", "convert", "store")]
    for step in steps:
        assert (step.trace_id, step.parent_span_id) == (server.trace_id, server.span_id)
        assert server.start_time_unix_nano <= step.start_time_unix_nano + 5_000_000  # the times come from two clocks
        assert step.start_time_unix_nano <= step.end_time_unix_nano <= server.end_time_unix_nano + 5_000_000
    assert [step.start_time_unix_nano for step in steps] == sorted(step.start_time_unix_nano for step in steps)
    assert attributes(steps[1]) == {"audiocraft.model": "small", "audiocraft.num_frames": 50}
    assert [event.name for event in steps[1].events] == ["first audio"]
    assert collector.resources[0]["service.name"] == "audiocraft-api"
    assert not [body for body in collector.bodies if b"secret" in body]


def test_a_failure_is_recorded_and_probes_create_no_spans(
    collector: Collector, make_app: Callable[..., Flask], engine: FakeEngine
) -> None:
    client = make_app(otlp_endpoint=collector.url).test_client()
    engine.failure = GenerationFailed("It failed.")
    assert generate(client).status_code == 500
    for path in ("/health", "/ready", "/metrics", "/models"):
        client.get(path)
    wait_until(lambda: len(collector.spans) == 4)
    assert {span.name for span in collector.spans} == {"POST /generate", "queue wait", "decode", "GET /models"}
    for span in (*collector.named("POST /generate"), *collector.named("decode")):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes(span)["error.type"] == "generation_failed"
    (models,) = collector.named("GET /models")
    assert models.trace_id != collector.named("decode")[0].trace_id


def test_the_span_of_a_stream_ends_with_its_last_byte(collector: Collector, make_app: Callable[..., Flask]) -> None:
    client = make_app(otlp_endpoint=collector.url).test_client()
    response = client.post("/generate-stream", json={"prompt": "solo cello", "duration": 1}, buffered=False)
    wait_until(lambda: bool(collector.named("decode")))
    assert not collector.named("POST /generate-stream")
    response.close()
    wait_until(lambda: bool(collector.named("POST /generate-stream")))
    assert collector.named("decode")[0].parent_span_id == collector.named("POST /generate-stream")[0].span_id


def test_a_task_on_another_machine_is_linked_to_the_request_that_submitted_it(
    tmp_path: Path, collector: Collector
) -> None:
    redis = RedisServer(tmp_path)
    settings: dict[str, Any] = {"task_backend": "celery", "redis_url": redis.url, "audio_dir": tmp_path / "audio"}
    settings["otlp_endpoint"] = collector.url
    worker = CeleryProcess(tmp_path / "worker.log", tmp_path / "hold", **settings)
    redis.start()
    worker.start()
    try:
        with serve(tmp_path, **settings) as server:
            response = server.post("/generate-async", json={"prompt": "solo cello", "duration": 1})
            wait_until(lambda: bool(collector.named("task") and collector.named("POST /generate-async")))
    finally:
        worker.kill()
        redis.kill()
    (task,), (submitted,) = collector.named("task"), collector.named("POST /generate-async")
    (link,) = task.links
    assert (link.trace_id, link.span_id) == (submitted.trace_id, submitted.span_id)
    assert task.trace_id != submitted.trace_id
    assert attributes(task) == {"audiocraft.task_id": response.json()["task_id"], "audiocraft.attempt": 1}
    for name in ("queue wait", "decode", "convert", "store"):
        assert collector.named(name)[0].parent_span_id == task.span_id


def test_pending_spans_are_sent_when_the_server_stops(collector: Collector, tmp_path: Path) -> None:
    with serve(tmp_path, "support.served:app", otlp_endpoint=collector.url) as server:
        assert server.get("/models").status_code == 200
        assert server.terminate() == 0
    assert len(collector.named("GET /models")) == 1


@pytest.mark.timing
def test_a_dead_collector_delays_neither_requests_nor_the_shutdown(tmp_path: Path) -> None:
    with serve(tmp_path, "support.served:app", otlp_endpoint=f"http://127.0.0.1:{free_port()}") as server:
        for _ in range(50):
            assert server.get("/models").status_code == 200
        wait_until(lambda: "does not accept spans" in server.log)
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 6
        assert server.log.count("does not accept spans") == 1
        assert "Traceback" not in server.log


def test_without_a_collector_opentelemetry_is_not_imported() -> None:
    program = (
        "import sys; from audiocraft_api.config import load_config; from audiocraft_api.factory import create_app; "
        "create_app(load_config()).test_client().get('/models'); print('opentelemetry' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "False", run.stderr
