"""The admin listener responds whatever clients do, on the public port and on its own port."""

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
    """Return the duration of a request on a new connection."""
    started = time.monotonic()
    assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=60).status_code == 200
    return time.monotonic() - started


def test_responses_equal_those_of_the_public_port(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, FAKE, admin_bind=f"127.0.0.1:{port}") as server:
        admin = f"http://127.0.0.1:{port}"
        assert requests.get(f"{admin}/health", timeout=60).json() == server.get("/health").json()
        assert requests.get(f"{admin}/ready", timeout=60).json() == server.get("/ready").json()
        response = requests.get(f"{admin}/metrics", timeout=60)
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert Scrape(response.text).names == Scrape(server.get("/metrics").text).names
        assert requests.get(f"{admin}/generate", timeout=60).status_code == 404
        assert requests.get(f"{admin}/tasks?x=/health", timeout=60).status_code == 404


def test_waiting_stalled_and_idle_clients_do_not_starve_the_listener(tmp_path: Path, port: int) -> None:
    (tmp_path / "hold").touch()
    settings: dict[str, Any] = {"admin_bind": f"127.0.0.1:{port}", "threads": 64, "max_synchronous_requests": 64}
    stalled = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with ThreadPoolExecutor(64) as pool, serve(tmp_path, FAKE, **settings) as server, ExitStack() as connections:
        waiting = [pool.submit(server.post, "/generate", json=REQUEST) for _ in range(64)]
        for sent in [stalled] * 50 + [b""] * 100:
            connections.enter_context(connect(server.port, sent))
        wait_until(lambda: scrape(port).total("waiting_synchronous_requests") >= 50)
        slowest = max(seconds_of(port, path) for path in ("/health", "/ready", "/metrics") * 5)
        print(f"slowest response under this load: {slowest:.3f} s")
        assert slowest < 1
        (tmp_path / "hold").unlink()
        connections.close()
        assert {request.result().status_code for request in waiting} == {200}


def scrape(port: int) -> Scrape:
    return Scrape(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text)


@pytest.mark.timing
@pytest.mark.usefixtures("listener")
def test_stalled_connections_are_closed_for_new_ones(port: int) -> None:
    with ExitStack() as connections:
        opened = [connections.enter_context(connect(port, sent)) for sent in [b"", b"GET /hea"] * (2 * MAX_CONNECTIONS)]
        assert max(seconds_of(port) for _ in range(10)) < 1
        num_threads = sum(thread.name.startswith("Thread") for thread in threading.enumerate())
        assert num_threads <= 2 * MAX_CONNECTIONS
        assert opened[0].recv(1) == b""  # the oldest was closed


def test_a_stalled_connection_is_closed(port: int) -> None:
    listener = AdminListener({}, stall_seconds=0.1)
    listener.start(listen(f"127.0.0.1:{port}"))
    with connect(port, b"GET /health HT") as connection:
        assert connection.recv(1) == b""
    listener.close()


@pytest.mark.usefixtures("listener")
def test_errors_are_responses_and_are_logged(port: int, caplog: pytest.LogCaptureFixture) -> None:
    response = requests.get(f"http://127.0.0.1:{port}/broken", timeout=60)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "failed to serve /broken" in caplog.text
    unsupported = requests.post(f"http://127.0.0.1:{port}/health", timeout=60)
    assert unsupported.status_code == 501
    assert unsupported.json()["code"] == "not_found"
    assert requests.head(f"http://127.0.0.1:{port}/health", timeout=60).content == b""


def test_the_listener_works_while_the_server_drains_and_reports_not_ready(tmp_path: Path, port: int) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with ThreadPoolExecutor(1) as pool, serve(tmp_path, FAKE, admin_bind=f"127.0.0.1:{port}") as server:
        waiting = pool.submit(server.post, "/generate", json=REQUEST)
        wait_until(lambda: server.num_running() == 1)
        server.process.terminate()
        wait_until(lambda: requests.get(f"http://127.0.0.1:{port}/ready", timeout=60).status_code == 503)
        response = requests.get(f"http://127.0.0.1:{port}/ready", timeout=60)
        assert response.json()["code"] == "shutting_down"
        assert response.headers["Retry-After"]
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200
        hold.unlink()
        assert waiting.result().status_code == 200
        assert server.process.wait(20) == 0


def test_the_listener_is_available_again_after_its_process_was_killed(tmp_path: Path, port: int) -> None:
    with serve(tmp_path, FAKE, admin_bind=f"127.0.0.1:{port}") as server:
        assert scrape(port).total("http_requests_total", route="/health") >= 1
        kill_worker(server)
        server.get("/models")
        assert seconds_of(port) < 5
        assert scrape(port).total("http_requests_total") == 1  # counts start again at zero


def kill_worker(server: Server) -> None:
    before = server.worker_pid()
    subprocess.run(["kill", "-9", str(before)], check=True)
    wait_until(lambda: server.worker_pid() not in (None, before))


def test_a_port_in_use_stops_a_server_with_a_message(port: int, listener: AdminListener) -> None:
    assert listener
    gunicorn = [Path(sys.executable).parent / "gunicorn", "-c", "gunicorn.conf.py", "app:app"]
    binds = {"AUDIOCRAFT_API_ADMIN_BIND": f"127.0.0.1:{port}", "AUDIOCRAFT_API_BIND": f"127.0.0.1:{free_port()}"}
    for command in (gunicorn, [sys.executable, "app.py"]):
        run = subprocess.run(command, cwd=ROOT, env=os.environ | binds, capture_output=True, text=True, timeout=30)
        assert run.returncode != 0
        assert f"AUDIOCRAFT_API_ADMIN_BIND=127.0.0.1:{port}: cannot listen on this address" in run.stderr
        assert "Traceback" not in run.stderr


def test_a_celery_worker_has_a_listener_and_a_port_in_use_stops_the_worker(tmp_path: Path, port: int) -> None:
    redis = RedisServer(tmp_path)
    settings = {"task_backend": "celery", "redis_url": redis.url, "admin_bind": f"127.0.0.1:{port}"}
    settings |= {"audio_dir": str(tmp_path / "audio")}
    first = CeleryProcess(tmp_path / "first.log", tmp_path / "hold", **settings)
    second = CeleryProcess(tmp_path / "second.log", tmp_path / "hold", **settings)
    redis.start()
    try:
        first.start()
        wait_until(lambda: responds(port, "/ready"))
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=60).json()["queue"] == {
            "waiting": 0,
            "running": 0,
        }
        second.start()
        wait_until(lambda: "cannot listen on this address" in second.log)
        assert second.terminate() != 0
        assert "Traceback" not in second.log
        redis.kill()  # must not fail the probes: a restart of the worker would not repair Redis
        assert responds(port, "/health")
        assert responds(port, "/ready")
    finally:
        first.kill()
        second.kill()
        redis.kill()


def responds(port: int, path: str) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}{path}", timeout=60).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("bind", ["9090", "nowhere:x", ":9090"])
def test_an_address_without_a_host_or_port_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="ADMIN_BIND"):
        load_config({"AUDIOCRAFT_API_ADMIN_BIND": bind})


@pytest.mark.parametrize("bind", ["127.0.0.1:99999", "203.0.113.1:9090"])
def test_an_address_that_cannot_be_bound_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on this address"):
        listen(bind)


def test_the_listener_supports_ipv6() -> None:
    listener = AdminListener({"/health": lambda: AdminResponse(b"{}")})
    listening = listen("[::1]:0")
    listener.start(listening)
    assert requests.get(f"http://[::1]:{listening.getsockname()[1]}/health", timeout=60).status_code == 200
    listener.close()
