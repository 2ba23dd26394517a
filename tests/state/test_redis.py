"""The client of the Redis that several hosts share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.state.redis import RedisClient
from support.redis_server import RedisServer
from support.served import wait_until


@pytest.fixture
def client(tmp_path: Path) -> Iterator[RedisClient]:
    server = RedisServer(tmp_path)
    server.start()
    client = RedisClient(server.url, "store of a test")
    yield client
    client.close()
    server.kill()


def test_a_command_that_is_running_survives_close(client: RedisClient) -> None:
    def pop_letter() -> Any:
        with client.commands() as commands:
            return commands.blpop("letters", timeout=4)

    with ThreadPoolExecutor(1) as pool, client.commands() as commands:
        taken = pool.submit(pop_letter)
        wait_until(lambda: any(other["cmd"] == "blpop" for other in commands.client_list()))
        client.close()
        commands.rpush("letters", "a")
        assert taken.result(10) == (b"letters", b"a")  # and later commands still work
