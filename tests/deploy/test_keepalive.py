"""Idle connections between a proxy and a server: the proxy must be the one that closes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from support.nginx import reusing_proxy
from support.served import serve, wait_until

FAKE = "support.served:app"
ESTABLISHED, TIME_WAIT = 1, 6  # states of a TCP connection; the side that closed it first waits


def connections(state: int) -> list[tuple[int, int]]:
    """Return the local and the remote port of every TCP connection of this machine in a state."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [(int(row[1].split(":")[1], 16), int(row[2].split(":")[1], 16), int(row[3], 16)) for row in rows]
    return [(local, remote) for local, remote, found in ports if found == state]


def test_a_proxy_that_reuses_connections_closes_idle_ones_first_and_gets_no_502(tmp_path: Path) -> None:
    with (
        serve(tmp_path, FAKE, keepalive_seconds=20) as server,
        reusing_proxy(tmp_path, server.port, idle_seconds=1) as url,
        ThreadPoolExecutor(8) as pool,
    ):

        def statuses() -> set[int]:
            return set(pool.map(lambda _: requests.get(f"{url}/health", timeout=20).status_code, range(40)))

        def num_idle() -> int:
            return sum(remote == server.port for _, remote in connections(ESTABLISHED))

        for _ in range(2):
            assert statuses() == {200}
            assert 0 < num_idle() <= 8
            wait_until(lambda: num_idle() == 0)
        closed_by_server = [local for local, _ in connections(TIME_WAIT) if local == server.port]
        closed_by_proxy = [remote for _, remote in connections(TIME_WAIT) if remote == server.port]
        assert len(closed_by_proxy) >= 2
        assert closed_by_server == []
