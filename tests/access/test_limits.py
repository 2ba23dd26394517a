"""Limits are exact with many threads, across servers, and while Redis is down."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from audiocraft_api.access.caller import Caller
from audiocraft_api.access.create import create_quota_store
from audiocraft_api.access.limits import Limits, network_of
from audiocraft_api.access.quota_store import QuotaStore, SqliteQuotaStore
from audiocraft_api.access.rate_limiter import MemoryRateLimiter, RedisRateLimiter
from audiocraft_api.config.limits import LimitSettings
from audiocraft_api.state import schema
from audiocraft_api.state.redis import RedisClient
from audiocraft_api.state.sqlite import SqliteFile
from support.redis_server import RedisServer


@pytest.fixture(params=["sqlite", "redis"])
def quotas(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QuotaStore]:
    state = (
        SqliteFile(tmp_path / "state.sqlite3", schema.LAYOUT)
        if request.param == "sqlite"
        else RedisClient(request.getfixturevalue("redis_server").url, "state store")
    )
    yield create_quota_store(state)
    state.close()


def test_concurrent_charges_never_exceed_the_quota_and_refunds_never_go_below_0(quotas: QuotaStore) -> None:
    def charge(_: int) -> bool:
        return quotas.charge("a", 7, 1.1, max_requests=0, max_seconds=11).is_charged

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(charge, range(60))) == 10
    assert (quotas.usage("a", 7).requests, quotas.usage("a", 7).seconds) == (10, 11.0)
    assert not quotas.charge("b", 7, 12, max_requests=1, max_seconds=11).is_charged
    for _ in range(12):
        quotas.refund("a", 7, 1.1)
    assert (quotas.usage("a", 7).requests, quotas.usage("a", 7).seconds) == (0, 0.0)


def test_further_audio_of_a_request_counts_seconds_and_no_request(quotas: QuotaStore) -> None:
    assert quotas.charge("a", 7, 1, max_requests=1, max_seconds=3).is_charged
    for _ in range(2):
        assert quotas.charge("a", 7, 1, max_requests=1, max_seconds=3, num_requests=0).is_charged
    assert not quotas.charge("a", 7, 1, max_requests=1, max_seconds=3, num_requests=0).is_charged
    quotas.refund("a", 7, 1, num_requests=0)
    assert (quotas.usage("a", 7).requests, quotas.usage("a", 7).seconds) == (1, 2.0)


def test_the_limiter_in_memory_is_exact_slides_its_window_and_drops_old_keys() -> None:
    now = [0.0]
    limiter = MemoryRateLimiter(clock=lambda: now[0], max_keys=50)
    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(lambda _: limiter.hit("a", 50).is_allowed, range(400))) == 50
    now[0] = 60.1
    assert limiter.hit("a", 50).remaining == 49
    for name in range(200):
        limiter.hit(str(name), 1)
    assert len(limiter) == 50


def test_servers_share_the_limit_and_without_redis_each_server_keeps_its_own_counts(redis_server: RedisServer) -> None:
    servers = [RedisRateLimiter(redis_server.url, "test:") for _ in range(3)]

    def hit(index: int) -> bool:
        return servers[index % 3].hit("a", 30).is_allowed

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(hit, range(120))) == 30
        redis_server.kill()
        assert sum(pool.map(hit, range(300))) == 60  # each server admits up to 30 of its own


def test_without_a_quota_the_quota_store_is_not_accessed() -> None:
    quotas, is_repeat = Mock(spec=SqliteQuotaStore), Mock(return_value=False)
    limits = Limits(MemoryRateLimiter(), quotas, LimitSettings(requests_per_minute=5))
    for _ in range(2):
        admission = limits.admit(Caller("a"), "1.2.3.4", 10.0, is_repeat=is_repeat)
        admission.refund()
        assert [state.name for state in admission.states] == ["burst"]
    assert [state.remaining for state in limits.peek(Caller("a"), "1.2.3.4")] == [3]
    assert quotas.mock_calls == is_repeat.mock_calls == []


def test_an_ipv6_network_and_an_ipv4_address_each_count_as_one_address() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7") == "192.0.2.7"
    assert len(network_of("x" * 1000)) == 64
