"""The metrics are complete, correct and counted once, and contain no text from clients."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from audiocraft_api.config import Config
from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.plain import PlainEngine
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.tasks.worker import TaskWorker
from audiocraft_api.telemetry.catalog import METRICS, metrics_table
from audiocraft_api.telemetry.metrics import Metrics
from audiocraft_api.telemetry.sources import engine_metrics
from audiocraft_api.web.services import services_of
from support.celery_worker import CeleryProcess
from support.fakes import FakeEngine
from support.http import generate
from support.keys import ENVIRONMENT_KEY, with_key
from support.receiver import SECRET, Receiver
from support.redis_server import RedisServer
from support.scraped import Scrape
from support.served import ROOT, free_port, serve, wait_until

TIMEOUT_SECONDS = 40.0


@pytest.fixture
def client(make_app: Callable[..., Flask]) -> FlaskClient:
    return make_app().test_client()


def scrape(client: FlaskClient) -> Scrape:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(response.get_data(as_text=True))


def scrape_url(url: str) -> Scrape:
    response = requests.get(url + "/metrics", timeout=10)
    assert response.status_code == 200
    return Scrape(response.text)


def test_promtool_reports_no_problems(client: FlaskClient) -> None:
    generate(client)
    text = scrape(client).text
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_servers_and_workers_each_expose_exactly_their_own_metrics(client: FlaskClient) -> None:
    for place, families in (
        ("servers", scrape(client).families),
        ("workers", Scrape(Metrics("workers").render().decode()).families),
    ):
        expected = {spec.full_name.removesuffix("_total") for spec in METRICS if spec.place in ("both", place)}
        assert {name for name in families if name.startswith("audiocraft_api_")} == expected


def test_the_documentation_lists_every_metric() -> None:
    assert metrics_table() in (ROOT / "docs" / "metrics.md").read_text()


def test_requests_are_counted_by_route_method_and_status(client: FlaskClient) -> None:
    client.get("/tasks/one")
    client.get("/tasks/two")
    client.get("/health")
    found = scrape(client)
    assert found.total("http_requests_total", route="/tasks/<task_id>", method="GET", status="404") == 2
    assert found.total("http_requests_total", route="/health", status="200") == 1
    assert found.total("http_request_duration_seconds_count", route="/health") == 1
    assert found.total("errors_total", code="not_found") == 2


def test_text_from_clients_creates_no_series(client: FlaskClient) -> None:
    before = len(scrape(client).text.splitlines())
    for number in range(20):
        client.open(f"/secret-{number}", method=f"SECRET{number}", headers={"X-API-Key": f"secret-{number}"})
        client.get(f"/tasks/secret-{number}")
        generate(client, prompt=f"secret {number}", seed=number)
        generate(client, model_size=f"secret-{number}")
    found = scrape(client)
    assert "secret" not in found.text.lower()
    assert found.values("http_requests_total", "method") == {"GET", "POST", "other"}
    assert found.total("http_requests_total", route="unknown") == 20
    wait_until(lambda: scrape(client).total("generations_total") == 20)
    assert len(scrape(client).text.splitlines()) < before + 150


def test_a_generation_is_measured(client: FlaskClient) -> None:
    assert generate(client, duration=2, output_format="flac").status_code == 200
    wait_until(lambda: scrape(client).total("generations_total", model="small", end="finished") == 1)
    found = scrape(client)
    assert found.total("generated_audio_seconds_total", model="small") == 2
    assert 0 < found.total("generation_seconds_total", model="small") < 5
    for name in ("queue_wait_seconds", "first_audio_seconds", "real_time_factor"):
        assert found.total(f"{name}_count", model="small") == 1
        assert found.total(f"{name}_sum", model="small") > 0
    for step in ("convert", "store"):
        assert found.total("step_seconds_count", step=step) == 1


def test_a_failed_generation_is_counted_by_its_error_code_and_adds_no_audio(
    client: FlaskClient, engine: FakeEngine
) -> None:
    engine.failure = GenerationFailed("It failed.")
    assert generate(client).status_code == 500
    wait_until(lambda: scrape(client).total("generations_total", end="generation_failed") == 1)
    found = scrape(client)
    assert found.total("errors_total", code="generation_failed") == 1
    assert found.total("generated_audio_seconds_total") == 0


def test_refusals_are_exposed_from_the_start_and_counted_by_code(client: FlaskClient, engine: FakeEngine) -> None:
    assert {"queue_full", "limit_exceeded", "prompt_refused"} <= scrape(client).values("refusals_total", "code")
    engine.capacity = 0
    assert generate(client).status_code == 503
    assert generate(client, duration=0).status_code == 400
    found = scrape(client)
    assert found.total("refusals_total", code="queue_full") == 1
    assert found.total("refusals_total") == 1
    assert found.total("errors_total", code="invalid_request") == 1


def test_lookups_in_the_result_cache_are_counted(client: FlaskClient) -> None:
    telemetry = services_of(client.application).telemetry
    for hit in (True, False, True):
        telemetry.cache_lookup(hit=hit)
    found = scrape(client)
    assert (found.total("result_cache_hits_total"), found.total("result_cache_misses_total")) == (2, 1)


def test_open_streams_are_exposed(client: FlaskClient) -> None:
    response = client.post("/generate-stream", json={"prompt": "solo cello", "duration": 1}, buffered=False)
    assert scrape(client).total("open_streams") == 1
    response.close()
    assert scrape(client).total("open_streams") == 0


def test_failures_of_the_audio_store_are_counted(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    (tmp_path / "no-directory").touch()
    client = make_app(audio_dir=tmp_path / "no-directory").test_client()
    assert generate(client).status_code == 503
    assert scrape(client).total("storage_errors_total", store="audio") >= 1  # the sweep may fail too


def test_failures_of_the_task_store_and_the_key_store_are_counted(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    for name in ("state", "tasks"):
        (tmp_path / f"{name}.sqlite3").write_bytes(b"no database" * 1000)
    client = make_app(keys=ENVIRONMENT_KEY).test_client()
    headers = with_key(ENVIRONMENT_KEY)
    fields = {"prompt": "solo cello", "duration": 1}
    assert client.post("/generate-async", json=fields, headers=headers).status_code == 503
    assert client.get("/models", headers=with_key(f"acg_{'a' * 8}_{'b' * 43}")).status_code == 503
    counts = Scrape(services_of(client.application).telemetry.metrics.render().decode())
    assert counts.total("storage_errors_total", store="tasks") >= 1
    assert counts.total("storage_errors_total", store="keys") >= 1


def test_queued_and_finished_tasks_are_exposed(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskWorker, "start", lambda _: None)
    response = client.post("/generate-async", json={"prompt": "solo cello", "duration": 1})
    wait_until(lambda: scrape(client).total("queued_tasks") == 1)
    assert scrape(client).total("max_queued_tasks") == 100
    client.delete(response.headers["Location"])
    assert scrape(client).total("task_ends_total", state="canceled") == 1
    client.delete(response.headers["Location"])
    assert scrape(client).total("task_ends_total") == 1
    wait_until(lambda: scrape(client).total("queued_tasks") == 0)


def test_delivered_and_failed_webhooks_are_counted(make_app: Callable[..., Flask]) -> None:
    receiver = Receiver(500)
    client = make_app(webhook_secret=SECRET, webhook_allow_private=True).test_client()
    client.post("/generate-async", json={"prompt": "solo cello", "duration": 1, "webhook_url": receiver.url})
    wait_until(lambda: scrape(client).total("webhook_calls_total", outcome="delivered") == 1)
    receiver.close()
    assert scrape(client).total("webhook_calls_total", outcome="failed") == 1
    assert scrape(client).total("task_ends_total", state="completed") == 1


@pytest.mark.parametrize("kind", [BatchingEngine, PlainEngine])
def test_an_engine_is_read_at_each_scrape(
    demo_checkpoints: Path, kind: type[BatchingEngine] | type[PlainEngine]
) -> None:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True)
    cache = ModelCache(Catalog(config), config)
    engine, metrics = kind(cache, config.engine), Metrics("workers")
    metrics.read_from(engine_metrics(engine, cache, config.engine.max_waiting))
    assert Scrape(metrics.render().decode()).total("models_loaded") == 0
    try:
        engine.submit(GenerationParams("demo", "solo cello", 0.2, seed=1)).result(120)
        found = Scrape(metrics.render().decode())
    finally:
        engine.close()
        cache.close()
    num_steps = found.total("batch_rows_count", model="demo")
    assert 10 <= num_steps <= 14  # the frames, plus the delay of the last codebooks
    assert found.total("batch_rows_sum", model="demo") == 2 * num_steps
    assert found.total("batch_rows_bucket", model="demo", le="1.0") == 0
    assert found.total("batch_rows_bucket", model="demo", le="2.0") == num_steps
    assert 0 < found.total("decode_seconds_total", model="demo") < 60
    assert found.total("models_loaded") == 1
    assert found.total("model_memory_bytes", model="demo") > 100_000
    assert (found.total("kv_cache_bytes", model="demo") > 100_000) == (kind is BatchingEngine)
    assert found.total("engine_up") == 1
    assert found.total("engine_waiting_requests") == 0


def test_the_memory_of_a_running_request_is_exposed_until_the_request_ends(demo_checkpoints: Path) -> None:
    config = Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True)
    cache = ModelCache(Catalog(config), config)
    engine = BatchingEngine(cache, config.engine)

    def used() -> int:
        return sum(model.kv_cache_used_bytes for model in engine.status().models)

    try:
        request = engine.submit(GenerationParams("demo", "solo cello", 30, seed=1))
        wait_until(used, TIMEOUT_SECONDS)
        (model,) = engine.status().models
        assert used() * config.engine.max_batch_requests == model.kv_cache_bytes
        request.cancel()
        wait_until(lambda: not used(), TIMEOUT_SECONDS)
    finally:
        engine.close()
        cache.close()


def test_servers_and_workers_count_their_own_work_and_nothing_twice(tmp_path: Path) -> None:
    redis, hold, port = RedisServer(tmp_path), tmp_path / "hold", free_port()
    settings: dict[str, Any] = {"task_backend": "celery", "redis_url": redis.url, "audio_dir": tmp_path / "audio"}
    worker_url = f"http://127.0.0.1:{port}"
    worker = CeleryProcess(tmp_path / "worker.log", hold, **settings, admin_bind=f"127.0.0.1:{port}")
    redis.start()
    worker.start()
    try:
        with serve(tmp_path, **settings) as server:
            for _ in range(3):
                assert server.post("/generate", json={"prompt": "solo cello", "duration": 2}).status_code == 200
            at_server, at_worker = scrape_url(server.url), scrape_url(worker_url)
            assert at_server.total("http_requests_total", route="/generate", status="200") == 3
            assert at_server.total("generated_audio_seconds_total") == 0
            assert at_server.total("task_ends_total") == 0
            assert at_worker.total("generated_audio_seconds_total", model="small") == 6
            assert at_worker.total("task_ends_total", state="completed") == 3
            assert at_worker.total("queue_wait_seconds_count") == 3
            assert not [name for name in at_worker.names if "http" in name or "queued_tasks" in name]
            assert at_worker.total("build_info") == 1

            hold.touch()
            for _ in range(30):
                server.post("/generate-async", json={"prompt": "solo cello", "duration": 2})

            def running() -> float:
                return scrape_url(worker_url).total("engine_running_requests")

            def waiting() -> float:
                return scrape_url(server.url).total("queued_tasks")

            wait_until(lambda: 0 < running() == scrape_url(server.url).total("processing_tasks"), TIMEOUT_SECONDS)
            wait_until(lambda: waiting() + running() == 30, TIMEOUT_SECONDS)
            assert scrape_url(server.url).total("engine_running_requests") == 0  # or a sum would count twice
        with serve(tmp_path, **settings) as server:  # its counters start at zero, and it reports the same queue
            found = scrape_url(server.url)
            assert found.total("http_requests_total", route="/generate") == 0
            wait_until(lambda: waiting() + running() == 30, TIMEOUT_SECONDS)
    finally:
        hold.unlink(missing_ok=True)
        worker.kill()
        redis.kill()
