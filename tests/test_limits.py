"""How much a caller may have: exact under threads, over servers, and while Redis is dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiocraft_api.factory import create_quota_store
from audiocraft_api.http.services import services_of
from audiocraft_api.service.access.bursts import MemoryBursts, RedisBursts
from audiocraft_api.service.access.quota_store import QuotaStore, SqliteQuotaStore
from audiocraft_api.service.state import schema
from audiocraft_api.service.state.redis_client import RedisClient
from audiocraft_api.service.state.sqlite_file import SqliteFile
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate
from support.redis_server import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def quotas(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QuotaStore]:
    state = (
        SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
        if request.param == "sqlite"
        else RedisClient(request.getfixturevalue("redis_server").url, "state store")
    )
    yield create_quota_store(state)
    state.close()


def test_racing_charges_share_no_place_and_refunds_never_go_below_0(quotas: QuotaStore) -> None:
    def charge(_: int) -> bool:
        return quotas.charge("a", 7, 1.1, max_requests=0, max_seconds=11).is_charged

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(charge, range(60))) == 10
    assert (quotas.usage("a", 7).requests, quotas.usage("a", 7).seconds) == (10, 11.0)
    assert not quotas.charge("b", 7, 12, max_requests=1, max_seconds=11).is_charged
    for _ in range(12):
        quotas.refund("a", 7, 1.1)
    assert (quotas.usage("a", 7).requests, quotas.usage("a", 7).seconds) == (0, 0.0)


def test_a_minute_in_memory_is_exact_moves_and_forgets_names() -> None:
    now = [0.0]
    bursts = MemoryBursts(clock=lambda: now[0], max_names=50)
    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(lambda _: bursts.hit("a", 50).is_allowed, range(400))) == 50
    now[0] = 60.1
    assert bursts.hit("a", 50).remaining == 49
    for name in range(200):
        bursts.hit(str(name), 1)
    assert len(bursts) == 50


def test_servers_share_a_minute_and_the_death_of_redis_gives_nobody_a_new_one(redis_server: RedisServer) -> None:
    servers = [RedisBursts(redis_server.url, "test:") for _ in range(3)]

    def hit(index: int) -> bool:
        return servers[index % 3].hit("a", 30).is_allowed

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(hit, range(120))) == 30
        redis_server.kill()
        assert sum(pool.map(hit, range(300))) == 60  # each server goes on to 30 of its own


def test_a_refusal_is_429_with_headers_and_a_failure_costs_no_quota(tmp_path: Path) -> None:
    engine = FakeEngine()
    app = fake_app(tmp_path, engine, requests_per_day=2, requests_per_minute=4)
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


def test_an_address_is_the_one_that_the_trusted_proxy_saw(tmp_path: Path) -> None:
    for num_proxies, expected in ((0, 429), (1, 200)):
        client = fake_app(tmp_path, address_requests_per_minute=1, trusted_proxies=num_proxies).test_client()
        body = {"prompt": "a", "duration": 1}
        assert client.post("/generate", json=body, headers={"X-Forwarded-For": "1.1.1.1"}).status_code == 200
        second = client.post("/generate", json=body, headers={"X-Forwarded-For": "1.1.1.1, 2.2.2.2"})
        assert second.status_code == expected


def test_a_stream_holds_its_place_until_it_ends(tmp_path: Path) -> None:
    client = fake_app(tmp_path, concurrent_requests=1).test_client()
    stream = client.post("/generate-stream", json={"prompt": "a", "duration": 1})
    assert stream.status_code == 200
    assert_error(generate(client), 429, "too_many_requests_at_once")
    stream.close()
    assert generate(client).status_code == 200


def test_without_a_quota_the_store_is_not_touched(tmp_path: Path) -> None:
    app = fake_app(tmp_path, max_duration_seconds=2)
    assert isinstance(create_quota_store(services_of(app).state), SqliteQuotaStore)
    answer = generate(app.test_client())
    assert not [name for name, _ in answer.headers if "RateLimit" in name]
    assert_error(generate(app.test_client(), duration=3), 400, "invalid_request", "duration")
