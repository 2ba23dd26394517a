"""A real gunicorn with the production configuration: slow clients, timeouts, shutdown and malformed HTTP."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import soundfile
from gunicorn.config import Config as GunicornConfig

from audiocraft_api.config import variable_name
from audiocraft_api.web.gunicorn_worker import FIRST_BYTE_SECONDS, Worker, ignore_new_connections
from support.served import ROOT, Server, free_port, responds_ok, serve, wait_until

REQUEST = {"prompt": "solo cello", "duration": 1}
FAKE = "support.served:app"


def time_health(server: Server) -> float:
    """Return the seconds that `/health` takes on a new connection."""
    started = time.monotonic()
    assert server.get("/health").status_code == 200
    return time.monotonic() - started


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Read an HTTP response to its end from a raw connection; return status, headers and JSON body."""
    connection.settimeout(10)
    received = b""
    while block := connection.recv(65536):
        received += block
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *header_lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in header_lines)
    return int(status_line.split()[1]), headers, json.loads(body)


@pytest.mark.timing
def test_health_responds_soon_after_the_start_without_torch(tmp_path: Path) -> None:
    started = time.monotonic()
    with serve(tmp_path) as server:
        seconds = time.monotonic() - started
        print(f"first response after {seconds:.2f} s")
        children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True)
        (worker,) = children.stdout.split()
        mapped = Path(f"/proc/{worker}/maps").read_text()
        assert "libtorch" not in mapped
        health = server.get("/health").json()
        assert health["models_loaded"] == []
        assert health["cpu_kernels"] is None
        assert server.terminate() == 0
    assert seconds < 6


def test_an_untested_version_of_gunicorn_is_refused_at_the_start() -> None:
    start = "import gunicorn; gunicorn.__version__ = '27.1.0'; from gunicorn.app.wsgiapp import run; run()"
    command = [sys.executable, "-c", start, "-c", "gunicorn.conf.py", FAKE]
    environ = os.environ | {variable_name("bind"): f"127.0.0.1:{free_port()}", "PYTHONPATH": str(ROOT / "tests")}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "gunicorn 27.1.0 is not supported" in ended.stderr
    assert "Install the locked version with: pip install gunicorn==27.0.1" in ended.stderr


@pytest.mark.timing
def test_idle_and_stalled_connections_do_not_hold_up_health(tmp_path: Path) -> None:
    with serve(tmp_path, FAKE) as server:
        connections = [server.connect() for _ in range(100)]
        try:
            for connection in connections[40:60]:
                connection.sendall(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Le")
            for connection in connections[60:80]:
                connection.sendall(
                    b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                    b'Content-Length: 100\r\n\r\n{"prompt"'
                )
            for connection in connections[80:]:  # these get a response but are never closed by the client
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            slowest = max(time_health(server) for _ in range(10))
            print(f"slowest /health with 100 such connections: {slowest:.3f} s")
            assert slowest < 3
        finally:
            for connection in connections:
                connection.close()


def test_a_connection_that_stalls_in_its_body_gets_a_response_and_is_closed(tmp_path: Path) -> None:
    with serve(tmp_path, FAKE, socket_timeout_seconds=1) as server:
        with server.connect() as connection:
            connection.sendall(
                b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Connection: close\r\nContent-Length: 100\r\n\r\n{"
            )
            status, _, body = read_response(connection)
            assert (status, body["code"]) == (400, "invalid_request")
        with server.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHo")
            connection.settimeout(10)
            assert connection.recv(1) == b""
        wait_until(lambda: "Closed a connection that stalled" in server.log)
        assert "Traceback" not in server.log


@pytest.mark.timing
def test_a_client_that_disconnects_stops_its_generation(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, FAKE) as server:
        assert hold.exists()
        body = json.dumps(REQUEST).encode()
        connection = server.connect()
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: server.num_running() == 1)
        connection.close()
        left = time.monotonic()
        wait_until(lambda: server.num_running() == 0)
        assert time.monotonic() - left < 3
        wait_until(lambda: "POST /generate 499" in server.log)
        assert not list((tmp_path / "audio").glob("*"))


@pytest.mark.timing
def test_a_missed_deadline_is_504_and_stops_the_generation(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, FAKE, request_deadline_seconds=0.3) as server:
        assert hold.exists()
        started = time.monotonic()
        response = server.post("/generate", json=REQUEST)
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - started < 2
        wait_until(lambda: server.num_running() == 0)


@pytest.mark.timing
def test_requests_over_max_waiting_get_503_immediately_and_health_still_responds(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, FAKE, threads=8, max_waiting=100) as server, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(server.post, "/generate", json=REQUEST) for _ in range(2)]  # a quarter of the threads
        wait_until(lambda: server.num_running() == 2)
        times = []
        for _ in range(20):
            started = time.monotonic()
            response = server.post("/generate", json=REQUEST)
            times.append(time.monotonic() - started)
            assert (response.status_code, response.json()["code"]) == (503, "queue_full")
            assert int(response.headers["Retry-After"]) >= 1
        print(f"503 after at most {max(times) * 1000:.0f} ms")
        assert sorted(times)[-2] < 0.5  # one of twenty may hit a busy machine
        assert time_health(server) < 3
        hold.unlink()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert server.post("/generate", json=REQUEST).status_code == 200


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, FAKE, graceful_timeout_seconds=20) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/generate", json=REQUEST)
        wait_until(lambda: server.num_running() == 1)
        kept = requests.Session()
        assert kept.get(server.url + "/ready").status_code == 200
        server.process.terminate()
        wait_until(lambda: "Draining" in server.log)
        ready = kept.get(server.url + "/ready")  # on an existing connection; new ones are refused
        assert (ready.status_code, ready.json()["code"]) == (503, "shutting_down")
        with pytest.raises(requests.ConnectionError):  # refused immediately, so that a proxy tries another server
            server.get("/health")
        hold.unlink()
        assert running.result(20).status_code == 200
        assert server.process.wait(20) == 0
        with pytest.raises(requests.ConnectionError):
            server.get("/health")


def test_connections_established_before_a_stop_get_their_responses(tmp_path: Path) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with serve(tmp_path, FAKE, graceful_timeout_seconds=20) as server:
        worker = server.worker_pid()
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)  # until SIGCONT only the kernel accepts connections
        connections = [server.connect() for _ in range(8)]
        for connection in connections[:4]:
            connection.sendall(request)
        server.process.terminate()
        wait_until(lambda: "Handling signal: term" in server.log)
        os.kill(worker, signal.SIGTERM)  # in case the master has not sent it yet
        os.kill(worker, signal.SIGCONT)
        wait_until(lambda: "Draining" in server.log)
        time.sleep(4 * FIRST_BYTE_SECONDS)
        for connection in connections[4:]:
            connection.sendall(request)
        assert [read_response(connection)[0] for connection in connections] == [200] * 8
        for connection in connections:
            connection.close()
        assert server.process.wait(20) == 0


def test_a_connection_is_accepted_or_refused_but_not_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as late:
        address = listener.getsockname()
        with socket.create_connection(address) as early:
            ignore_new_connections(listener)
            late.settimeout(0.2)
            if sys.platform == "linux":
                with pytest.raises(TimeoutError):
                    late.connect(address)
            accepted, _ = listener.accept()
            listener.close()
            with accepted:
                early.sendall(b"request")
                assert accepted.recv(7) == b"request"
                accepted.sendall(b"response")
                assert early.recv(8) == b"response"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_a_request_that_outlasts_the_grace_period_gets_503(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, FAKE, graceful_timeout_seconds=2) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/generate", json=REQUEST)
        wait_until(lambda: server.num_running() == 1)
        assert hold.exists()
        assert server.terminate() == 0
        response = running.result(20)
        assert (response.status_code, response.json()["code"]) == (503, "shutting_down")
        assert "Retry-After" in response.headers


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400, "invalid_request"),
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Large: " + b"a" * 65536 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n", 400, "invalid_request"),
    ],
    ids=["no HTTP", "long path", "large header", "bad header"],
)
def test_malformed_http_is_refused_in_the_common_error_format(
    shared_server: Server, sent: bytes, status: int, code: str
) -> None:
    with shared_server.connect() as connection:
        connection.sendall(sent)
        received_status, headers, body = read_response(connection)
    assert received_status == status
    assert set(body) == {"error", "code", "request_id"}
    assert body["code"] == code
    assert headers["X-Request-ID"] == body["request_id"]
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Access-Control-Expose-Headers"] == "X-Request-ID"


def test_the_path_of_a_route_with_two_slashes_is_not_found(shared_server: Server) -> None:
    with shared_server.connect() as connection:
        connection.sendall(b"GET //health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        status, headers, body = read_response(connection)
    assert (status, body["code"]) == (404, "not_found")
    assert "Location" not in headers


def test_an_idle_connection_is_closed_after_the_keepalive_time(tmp_path: Path) -> None:
    with serve(tmp_path, FAKE, keepalive_seconds=1) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, _ = read_response(connection)  # which ends when the server closes the connection
        assert (status, headers["Connection"]) == (200, "keep-alive")


def test_a_port_in_use_is_reported_at_once_with_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            [Path(sys.executable).parent / "gunicorn", "-c", "gunicorn.conf.py", "app:app"],
            cwd=ROOT,
            env=os.environ | {variable_name("bind"): f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert f"Port {port} is in use by another program." in done.stderr
    assert f"AUDIOCRAFT_API_BIND=127.0.0.1:{port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_real_server_refuses_chunked_bodies_with_411_and_large_bodies_with_413(shared_server: Server) -> None:
    chunked = shared_server.post("/generate", data=iter([b"{}"]), headers={"Content-Type": "application/json"})
    assert (chunked.status_code, chunked.json()["code"]) == (411, "length_required")
    large = shared_server.post("/generate", data=b" " * 2**20, headers={"Content-Type": "application/json"})
    assert (large.status_code, large.json()["code"]) == (413, "payload_too_large")
    assert shared_server.get("/health").status_code == 200


def test_curl_saves_a_playable_file_under_the_servers_name(shared_server: Server, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    assert curl
    for output_format in ("wav", "mp3", "ogg"):
        url = shared_server.post("/generate", json=REQUEST | {"output_format": output_format}).json()["audio_url"]
        subprocess.run([curl, "-sS", "-O", "-J", shared_server.url + url], cwd=tmp_path, check=True, timeout=10)
        audio, sample_rate = soundfile.read(tmp_path / url.removeprefix("/audio/"))
        assert sample_rate == 32_000
        assert abs(len(audio) - 32_000) < 2 * 1152 if output_format == "mp3" else len(audio) == 32_000


def test_concurrent_clients_each_get_their_own_file(shared_server: Server) -> None:
    def fetch(number: int) -> tuple[int, bytes]:
        body = shared_server.post("/generate", json=REQUEST | {"duration": 1 + number % 3, "seed": number}).json()
        assert body["seed"] == number
        return number, shared_server.get(body["audio_url"]).content

    with ThreadPoolExecutor(12) as pool:
        for number, audio in pool.map(fetch, range(48)):
            assert soundfile.info(io.BytesIO(audio)).frames == 32_000 * (1 + number % 3)


def test_gunicorn_and_the_app_log_in_the_same_format(tmp_path: Path) -> None:
    with serve(tmp_path, FAKE, log_format="json") as server:
        server.get("/health", headers={"X-Request-ID": "mine"})
        assert server.terminate() == 0
        records = [json.loads(line) for line in server.log.splitlines()]
    assert {"gunicorn.error", "audiocraft_api.access"} <= {record["logger"] for record in records}
    assert [record["path"] for record in records if record["request_id"] == "mine"] == ["/health"]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the fake engine, for tests that do not change its state."""
    with serve(tmp_path_factory.mktemp("server"), FAKE) as server:
        yield server


@pytest.mark.timing
def test_sigint_stops_the_server_immediately(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, FAKE, graceful_timeout_seconds=20) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/generate", json=REQUEST)
        wait_until(lambda: server.num_running() == 1)
        assert hold.exists()
        started = time.monotonic()
        server.process.send_signal(2)
        assert server.process.wait(20) == 0
        assert time.monotonic() - started < 10
        running.exception(10)  # the client does not keep waiting, whether or not it gets a response


def test_sigquit_exits_even_while_the_lock_of_the_thread_pool_is_held() -> None:
    class LockedPool:
        def shutdown(self, **_options: bool) -> None:
            raise AssertionError("The signal handler waits for a lock that the interrupted code may hold.")

    worker = Worker(1, os.getppid(), [], None, 30, GunicornConfig(), logging.getLogger("test"))
    worker.tpool = LockedPool()
    with pytest.raises(SystemExit):
        worker.handle_quit(signal.SIGQUIT, None)
    worker.tmp.close()


def test_the_development_server_serves_the_same_routes(tmp_path: Path) -> None:
    port = free_port()
    settings = {"bind": f"127.0.0.1:{port}", "audio_dir": tmp_path}
    settings |= {"task_db": tmp_path / "tasks.sqlite3", "state_db": tmp_path / "state.sqlite3"}
    environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
    with (tmp_path / "server.log").open("wb") as output:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environ, stdout=output, stderr=output)
    try:
        wait_until(lambda: responds_ok(f"http://127.0.0.1:{port}/health"))
    finally:
        process.terminate()
        process.wait(20)
