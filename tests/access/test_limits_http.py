"""Limits on every endpoint: which requests are counted, refused and refunded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from flask import Flask
from flask.testing import FlaskClient
from simple_websocket import Client
from werkzeug.test import TestResponse

from audiocraft_api.access.caller import CallerLimits
from audiocraft_api.core.errors import GenerationFailed, QueueFull
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate
from support.keys import ENVIRONMENT_KEY, OTHER_KEY, create_key, with_key
from support.redis_server import RedisServer
from support.served import Server, serve, wait_until

REQUEST = {"prompt": "solo cello", "duration": 1}


def submit(client: FlaskClient, *, path: str = "/generate-async", **headers: str) -> TestResponse:
    return client.post(path, json=REQUEST, headers=headers)


class MakeApp(Protocol):
    def __call__(self, engine: FakeEngine | None = None, **settings: Any) -> Flask: ...


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Return a function that creates apps, each with its own directory; all are closed at the end."""
    apps: list[Flask] = []
    engines: list[FakeEngine] = []

    def make(engine: FakeEngine | None = None, **settings: Any) -> Flask:
        engines.append(engine or FakeEngine())
        apps.append(fake_app(tmp_path / f"app-{len(apps)}", engines[-1], **settings))
        return apps[-1]

    yield make
    for engine, app in zip(engines, apps, strict=True):
        engine.open_gate.set()
        services_of(app).close()


def test_a_refusal_is_429_with_headers_and_a_failure_is_not_charged(make_app: MakeApp) -> None:
    engine = FakeEngine()
    app = make_app(engine, requests_per_day=2, requests_per_minute=4)
    client = app.test_client()
    engine.capacity = 0
    assert generate(client).status_code == 503
    engine.capacity = 9
    assert Counter(generate(client).status_code for _ in range(2)) == {200: 2}
    refused = generate(client)
    assert_error(refused, 429, "quota_exceeded")
    assert refused.headers["RateLimit-Policy"] == '"burst";q=4;w=60, "day";q=2;w=86400'
    assert int(refused.headers["Retry-After"]) > 0
    assert_error(generate(client), 429, "rate_limited")


def test_the_client_address_comes_from_the_trusted_proxy(make_app: MakeApp) -> None:
    for num_proxies, expected in ((0, 429), (1, 200)):
        client = make_app(address_requests_per_minute=1, trusted_proxies=num_proxies).test_client()
        body = {"prompt": "a", "duration": 1}
        assert client.post("/generate", json=body, headers={"X-Forwarded-For": "1.1.1.1"}).status_code == 200
        second = client.post("/generate", json=body, headers={"X-Forwarded-For": "1.1.1.1, 2.2.2.2"})
        assert second.status_code == expected


def test_a_stream_occupies_its_slot_until_it_ends(make_app: MakeApp) -> None:
    client = make_app(concurrent_requests=1).test_client()
    stream = client.post("/generate-stream", json={"prompt": "a", "duration": 1})
    assert stream.status_code == 200
    assert_error(generate(client), 429, "too_many_requests_at_once")
    stream.close()
    assert generate(client).status_code == 200


class TestRepeatedRequests:
    def test_a_repeated_request_gets_its_task_when_the_daily_quota_is_used_up(self, make_app: MakeApp) -> None:
        client = make_app(requests_per_day=2).test_client()
        task_id = submit(client, **{"Idempotency-Key": "once"}).json["task_id"]
        again = submit(client, **{"Idempotency-Key": "once"})
        assert (again.status_code, again.json["task_id"]) == (202, task_id)
        assert submit(client, **{"Idempotency-Key": "another"}).status_code == 202  # the repeat was not charged
        again = submit(client, **{"Idempotency-Key": "once"})
        assert (again.status_code, again.json["task_id"]) == (202, task_id)
        preferred = submit(client, path="/generate", **{"Prefer": "respond-async", "Idempotency-Key": "once"})
        assert preferred.status_code in (200, 202)  # 200 if the task is done
        assert preferred.json["seed"] == again.json["seed"]
        assert_error(submit(client, **{"Idempotency-Key": "third"}), 429, "quota_exceeded")

    def test_a_used_idempotency_key_does_not_bypass_the_quota_elsewhere(self, make_app: MakeApp) -> None:
        client = make_app(requests_per_day=1).test_client()
        assert submit(client, **{"Idempotency-Key": "once"}).status_code == 202
        for path in ("/generate", "/generate-stream"):  # neither creates a task
            assert_error(submit(client, path=path, **{"Idempotency-Key": "once"}), 429, "quota_exceeded")
        other = client.post("/generate-async", json=REQUEST | {"seed": 5}, headers={"Idempotency-Key": "once"})
        assert_error(other, 422, "idempotency_conflict")

    def test_repeats_count_toward_the_rate_limit(self, make_app: MakeApp) -> None:
        client = make_app(requests_per_minute=2).test_client()
        assert [submit(client, **{"Idempotency-Key": "once"}).status_code for _ in range(3)] == [202, 202, 429]


class TestTasks:
    def test_an_accepted_task_stays_charged_even_if_it_fails(self, make_app: MakeApp) -> None:
        engine = FakeEngine()
        engine.failure = GenerationFailed("It broke.")
        app = make_app(engine, requests_per_day=1)
        client = app.test_client()
        task_id = submit(client).json["task_id"]
        wait_until(lambda: client.get(f"/tasks/{task_id}").json["status"] == "failed")
        assert_error(submit(client), 429, "quota_exceeded")

    def test_a_task_refused_by_a_full_queue_is_not_charged(self, make_app: MakeApp) -> None:
        engine = FakeEngine()
        engine.open_gate.clear()
        app = make_app(engine, requests_per_day=100, max_queued_tasks=1)
        client = app.test_client()
        num_accepted, accepted = 0, []
        while (response := submit(client)).status_code == 202:
            num_accepted += 1
        assert_error(response, 503, "queue_full")
        engine.open_gate.set()
        wait_until(lambda: (response := submit(client)).status_code == 202 and accepted.append(response) is None)
        assert accepted[0].headers["X-RateLimit-Remaining"] == str(100 - num_accepted - 1)

    def test_a_request_without_a_free_slot_creates_no_task_and_is_not_charged(self, make_app: MakeApp) -> None:
        client = make_app(requests_per_day=2).test_client()
        request_slots = services_of(client.application).request_slots
        with ExitStack() as stack:
            with suppress(QueueFull):
                while True:
                    stack.enter_context(request_slots.acquire())
            assert_error(submit(client, path="/generate", Prefer="wait=5"), 503, "queue_full")
            assert client.get("/tasks").json["tasks"] == []
        assert submit(client).headers["X-RateLimit-Remaining"] == "1"

    def test_unfinished_tasks_of_a_key_are_limited_and_a_finished_task_frees_its_place(self, make_app: MakeApp) -> None:
        engine = FakeEngine()
        engine.open_gate.clear()
        app = make_app(engine, keys=f"{ENVIRONMENT_KEY},{OTHER_KEY}", concurrent_tasks=2)
        client, mine, others = app.test_client(), with_key(ENVIRONMENT_KEY), with_key(OTHER_KEY)
        tasks = [submit(client, **mine).json["task_id"] for _ in range(2)]
        refused = submit(client, **mine)
        assert_error(refused, 429, "too_many_tasks")
        assert int(refused.headers["Retry-After"]) > 0
        assert submit(client, **others).status_code == 202
        assert client.delete(f"/tasks/{tasks[1]}", headers=mine).status_code in (200, 202)
        wait_until(lambda: submit(client, **mine).status_code == 202)


class TestLimitsPerCaller:
    def test_limits_of_a_key_override_the_settings(self, make_app: MakeApp) -> None:
        app = make_app(requests_per_minute=2)
        strict = create_key(app, limits=CallerLimits(requests_per_minute=1, audio_seconds_per_day=3))
        unlimited = create_key(app, limits=CallerLimits(requests_per_minute=0))
        default = create_key(app)
        client = app.test_client()
        num_accepted = {
            key: [submit(client, path="/generate", **with_key(key)).status_code for _ in range(4)].count(200)
            for key in (strict, unlimited, default)
        }
        assert list(num_accepted.values()) == [1, 4, 2]

    def test_the_audio_quota_is_reported_and_enforced_before_any_work(self, make_app: MakeApp) -> None:
        engine = FakeEngine()
        app = make_app(engine)
        headers = with_key(create_key(app, limits=CallerLimits(audio_seconds_per_day=3)))
        client = app.test_client()
        first = client.post("/generate", json=REQUEST | {"duration": 2}, headers=headers)
        assert first.headers["RateLimit"].startswith('"audio-day";r=1;t=')
        refused = client.post("/generate", json=REQUEST | {"duration": 2}, headers=headers)
        sentence = assert_error(refused, 429, "quota_exceeded")["error"]
        assert sentence.startswith("Your daily quota of 3 seconds of audio has 1 seconds left.")
        assert len(engine.submitted) == 1
        assert client.post("/generate", json=REQUEST, headers=headers).status_code == 200

    def test_invalid_keys_count_toward_the_limit_of_their_address(self, make_app: MakeApp) -> None:
        client = make_app(keys=ENVIRONMENT_KEY, address_requests_per_minute=3).test_client()
        guesses = [generate_with(client, f"guess-{number:040}").status_code for number in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        assert_error(generate_with(client, ENVIRONMENT_KEY), 429, "rate_limited")
        elsewhere = client.post(
            "/generate", json=REQUEST, headers=with_key(ENVIRONMENT_KEY), environ_base={"REMOTE_ADDR": "10.0.0.9"}
        )
        assert elsewhere.status_code == 200

    def test_addresses_of_one_ipv6_network_share_a_limit(self, make_app: MakeApp) -> None:
        client = make_app(address_requests_per_minute=1).test_client()
        for address, expected in (("2001:db8::1", 200), ("2001:db8::2", 429), ("2001:db8:0:1::1", 200)):
            response = client.post("/generate", json=REQUEST, environ_base={"REMOTE_ADDR": address})
            assert response.status_code == expected


def generate_with(client: FlaskClient, key: str) -> TestResponse:
    return client.post("/generate", json=REQUEST, headers=with_key(key))


def generate_over_websocket(server: Server, prompt: str) -> dict[str, Any]:
    """Request one second of audio over a WebSocket and return the last message."""
    ws = Client.connect(f"ws://127.0.0.1:{server.port}/ws/generate")
    ws.send(json.dumps(REQUEST | {"prompt": prompt}))
    while True:
        message = ws.receive(timeout=20)
        assert message is not None
        event = json.loads(message) if isinstance(message, str) else {"type": "audio"}
        if event["type"] in ("done", "error"):
            return dict(event)


def test_a_refused_websocket_receives_the_time_to_retry(tmp_path: Path) -> None:
    with serve(tmp_path, "support.streamed:app", requests_per_minute=1) as server:
        assert generate_over_websocket(server, "solo cello")["type"] == "done"
        refused = generate_over_websocket(server, "solo cello")
        assert refused["code"] == "rate_limited"
        assert 0 < refused["retry_after"] <= 60


def test_a_websocket_that_fails_before_any_audio_is_not_charged(tmp_path: Path) -> None:
    with serve(tmp_path, "support.streamed:app", requests_per_day=2) as server:
        for prompt, code in (
            ("fail after 0", "generation_failed"),
            ("fail after 4", "generation_failed"),  # charged, because audio was sent
            ("fail after 0", "generation_failed"),
            ("fail after 4", "generation_failed"),
            ("fail after 0", "quota_exceeded"),
        ):
            assert generate_over_websocket(server, prompt)["code"] == code


class TestRedis:
    @pytest.fixture
    def shared(self, redis_server: RedisServer) -> dict[str, Any]:
        """The settings of servers that share a Redis."""
        return {"state_backend": "redis", "redis_url": redis_server.url, "keys": ENVIRONMENT_KEY}

    def test_servers_share_a_rate_limit_and_keep_working_when_redis_dies(
        self, shared: dict[str, Any], redis_server: RedisServer, make_app: MakeApp
    ) -> None:
        apps = [make_app(**shared, requests_per_minute=10) for _ in range(2)]

        def send(number: int) -> int:
            return generate_with(apps[number % 2].test_client(), ENVIRONMENT_KEY).status_code

        with ThreadPoolExecutor(8) as pool:
            assert Counter(pool.map(send, range(40))) == {200: 10, 429: 30}
            redis_server.kill()
            after = Counter(pool.map(send, range(60)))
        assert after == {200: 10, 429: 50}  # each server admits up to 10 of its own

    def test_a_quota_that_cannot_be_read_is_503_before_any_work(
        self, shared: dict[str, Any], redis_server: RedisServer, make_app: MakeApp
    ) -> None:
        engine = FakeEngine()
        client = make_app(engine, **shared, requests_per_day=10).test_client()
        assert generate_with(client, ENVIRONMENT_KEY).status_code == 200
        redis_server.kill()
        refused = generate_with(client, ENVIRONMENT_KEY)
        assert_error(refused, 503, "storage_unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        assert len(engine.submitted) == 1
        redis_server.start()
        wait_until(lambda: generate_with(client, ENVIRONMENT_KEY).status_code == 200)
