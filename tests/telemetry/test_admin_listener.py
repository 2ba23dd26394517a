"""The operator's listener answers whatever clients do, on the public port and on its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from audiocraft_api.config import ConfigError, load_config
from audiocraft_api.telemetry.admin_listener import MAX_CONNECTIONS, AdminListener, AdminResponse, listen
from support.celery_worker import CeleryProcess
from support.redis_server import RedisServer
from support.scraped import Scrape
from support.served import ROOT, Server, free_port, serve, wait_until

FAKE = "support.served:app"
REQUEST = {"prompt": "solo cello", "duration": 1}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def listener(port: int) -> Iterator[AdminListener]:
    listener = AdminListener({"/health": lambda: AdminResponse(b"{}"), "/broken": lambda: {}["absent"]})
    listener.start(listen(f"127.0.0.1:{port}"))
    yield listener
    listener.close()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(sent)
    return connection


def seconds_of(port: int, path: str = "/health") -> float:
    """Return how long an answer took on a new connection."""
    begun = time.monotonic()
    assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200
    return time.monotonic() - begun


def test_it_answers_what_the_public_port_answers(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, FAKE, admin_bind=f"127.0.0.1:{port}") as server:
        admin = f"http://127.0.0.1:{port}"
        assert requests.get(f"{admin}/health", timeout=5).json() == server.get("/health").json()
        assert requests.get(f"{admin}/ready", timeout=5).json() == server.get("/ready").json()
        answer = requests.get(f"{admin}/metrics", timeout=5)
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert Scrape(answer.text).names == Scrape(server.get("/metrics").text).names
        assert requests.get(f"{admin}/generate", timeout=5).status_code == 404
        assert requests.get(f"{admin}/tasks?x=/health", timeout=5).status_code == 404


def test_neither_waiters_nor_stalled_nor_idle_clients_starve_it(tmp_path: Path, port: int) -> None:
    (tmp_path / "hold").touch()
    settings: dict[str, Any] = {"admin_bind": f"127.0.0.1:{port}", "threads": 64, "max_synchronous_requests": 64}
    stalled = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with ThreadPoolExecutor(64) as pool, serve(tmp_path, FAKE, **settings) as server, ExitStack() as connections:
        waiters = [pool.submit(server.post, "/generate", json=REQUEST) for _ in range(64)]
        for sent in [stalled] * 50 + [b""] * 100:
            connections.enter_context(connect(server.port, sent))
        wait_until(lambda: scrape(port).total("waiting_synchronous_requests") >= 50, 20)
        slowest = max(seconds_of(port, path) for path in ("/health", "/ready", "/metrics") * 5)
        print(f"slowest answer beside them: {slowest:.3f} s")
        assert slowest < 1
        (tmp_path / "hold").unlink()
        connections.close()
        assert {waiter.result().status_code for waiter in waiters} == {200}


def scrape(port: int) -> Scrape:
    return Scrape(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text)


@pytest.mark.usefixtures("listener")
def test_clients_that_stall_on_it_make_room(port: int) -> None:
    with ExitStack() as connections:
        opened = [connections.enter_context(connect(port, sent)) for sent in [b"", b"GET /hea"] * (2 * MAX_CONNECTIONS)]
        assert max(seconds_of(port) for _ in range(10)) < 1
        num_threads = sum(thread.name.startswith("Thread") for thread in threading.enumerate())
        assert num_threads <= 2 * MAX_CONNECTIONS
        assert opened[0].recv(1) == b""  # the oldest was closed


def test_a_client_that_stalls_is_closed(port: int) -> None:
    listener = AdminListener({}, stall_seconds=0.1)
    listener.start(listen(f"127.0.0.1:{port}"))
    with connect(port, b"GET /health HT") as connection:
        assert connection.recv(1) == b""
    listener.close()


@pytest.mark.usefixtures("listener")
def test_what_goes_wrong_is_an_answer_and_a_line_in_the_log(port: int, caplog: pytest.LogCaptureFixture) -> None:
    answer = requests.get(f"http://127.0.0.1:{port}/broken", timeout=5)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "failed to serve /broken" in caplog.text
    refused = requests.post(f"http://127.0.0.1:{port}/health", timeout=5)
    assert refused.status_code == 501
    assert refused.json()["code"] == "not_found"
    assert requests.head(f"http://127.0.0.1:{port}/health", timeout=5).content == b""


def test_it_goes_on_while_the_server_drains_and_says_that_it_does(tmp_path: Path, port: int) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with ThreadPoolExecutor(1) as pool, serve(tmp_path, FAKE, admin_bind=f"127.0.0.1:{port}") as server:
        waiter = pool.submit(server.post, "/generate", json=REQUEST)
        wait_until(lambda: server.num_running() == 1)
        server.process.terminate()
        wait_until(lambda: requests.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 503)
        answer = requests.get(f"http://127.0.0.1:{port}/ready", timeout=5)
        assert answer.json()["code"] == "shutting_down"
        assert answer.headers["Retry-After"]
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
        hold.unlink()
        assert waiter.result().status_code == 200
        assert server.process.wait(20) == 0


def test_it_is_there_again_after_its_process_was_killed(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, FAKE, admin_bind=f"127.0.0.1:{port}") as server:
        assert scrape(port).total("http_requests_total", route="/health") >= 1
        kill_worker(server)
        server.get("/models")
        assert seconds_of(port) < 5
        assert scrape(port).total("http_requests_total") == 1  # counts begin anew


def kill_worker(server: Server) -> None:
    before = server.worker_pid()
    subprocess.run(["kill", "-9", str(before)], check=True)
    wait_until(lambda: server.worker_pid() not in (None, before), 20)


def test_a_port_in_use_stops_a_server_with_a_sentence(port: int, listener: AdminListener) -> None:
    assert listener
    gunicorn = [Path(sys.executable).parent / "gunicorn", "-c", "gunicorn.conf.py", "app:app"]
    binds = {"AUDIOCRAFT_API_ADMIN_BIND": f"127.0.0.1:{port}", "AUDIOCRAFT_API_BIND": f"127.0.0.1:{free_port()}"}
    for command in (gunicorn, [sys.executable, "app.py"]):
        run = subprocess.run(command, cwd=ROOT, env=os.environ | binds, capture_output=True, text=True, timeout=30)
        assert run.returncode != 0
        assert f"AUDIOCRAFT_API_ADMIN_BIND=127.0.0.1:{port}: cannot listen on this address" in run.stderr
        assert "Traceback" not in run.stderr


def test_a_worker_has_one_too_and_a_port_in_use_stops_it(tmp_path: Path, port: int) -> None:
    redis = RedisServer(tmp_path)
    settings = {"task_backend": "celery", "redis_url": redis.url, "admin_bind": f"127.0.0.1:{port}"}
    settings |= {"audio_dir": str(tmp_path / "audio")}
    first = CeleryProcess(tmp_path / "first.log", tmp_path / "hold", **settings)
    second = CeleryProcess(tmp_path / "second.log", tmp_path / "hold", **settings)
    redis.start()
    try:
        first.start()
        wait_until(lambda: answers(port, "/ready"), 20)
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["queue"] == {
            "waiting": 0,
            "running": 0,
        }
        second.start()
        wait_until(lambda: "cannot listen on this address" in second.log, 20)
        assert second.terminate() != 0
        assert "Traceback" not in second.log
        redis.kill()  # no reason to restart a worker, which could not mend it
        assert answers(port, "/health")
        assert answers(port, "/ready")
    finally:
        first.kill()
        second.kill()
        redis.kill()


def answers(port: int, path: str) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("bind", ["9090", "nowhere:x", ":9090"])
def test_an_address_without_host_or_port_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="ADMIN_BIND"):
        load_config({"AUDIOCRAFT_API_ADMIN_BIND": bind})


@pytest.mark.parametrize("bind", ["127.0.0.1:99999", "203.0.113.1:9090"])
def test_an_address_that_cannot_be_had_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on this address"):
        listen(bind)


def test_it_listens_on_ipv6_too() -> None:
    listener = AdminListener({"/health": lambda: AdminResponse(b"{}")})
    listening = listen("[::1]:0")
    listener.start(listening)
    assert requests.get(f"http://[::1]:{listening.getsockname()[1]}/health", timeout=5).status_code == 200
    listener.close()
