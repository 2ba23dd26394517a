"""Several servers behind the shipped nginx, with one Redis and one audio directory, look like one service."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from simple_websocket import Client

from audiocraft_api.__main__ import main
from support.celery_worker import CeleryProcess
from support.nginx import proxy
from support.redis_server import RedisServer
from support.served import Server, free_port, paused, serve, wait_until

FAKE = "support.served:app"
HOSTS = ("127.0.0.1", "127.0.0.2")  # Linux has all of 127.0.0.0/8
REQUEST: dict[str, Any] = {"prompt": "solo cello", "duration": 1}


@dataclass
class Cluster:
    """A proxy and two servers, which tests start and stop."""

    directory: Path
    redis: RedisServer
    port: int
    url: str

    @contextmanager
    def server(self, number: int, **settings: Any) -> Iterator[Server]:
        directory = self.directory / f"server-{number}"
        directory.mkdir(exist_ok=True)
        with serve(directory, FAKE, self.port, host=HOSTS[number], **self._shared() | settings) as server:
            yield server

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run a Celery worker."""
        directory = self.directory
        worker = CeleryProcess(directory / "worker.log", directory / "hold", task_backend="celery", **self._shared())
        worker.start()
        try:
            wait_until(lambda: "Receiving tasks from" in worker.log)
            yield
        finally:
            worker.kill()

    def _shared(self) -> dict[str, Any]:
        """Return the settings that servers and workers share."""
        return {
            "state_backend": "redis",
            "redis_url": self.redis.url,
            "audio_dir": self.directory / "audio",
            "max_queued_tasks": 10_000,
        }

    def pause_file(self, number: int) -> Path:
        """Return the file that pauses a server's generations while it exists."""
        return self.directory / f"server-{number}" / "hold"

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=20, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=REQUEST, timeout=60, **options)


@contextmanager
def run_cluster(directory: Path) -> Iterator[Cluster]:
    (directory / "redis").mkdir()
    redis = RedisServer(directory / "redis")
    redis.start()
    port = free_port()
    try:
        with proxy(directory, list(HOSTS), port) as url:
            yield Cluster(directory, redis, port, url)
    finally:
        redis.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster for one test, which starts and stops its servers."""
    with run_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Server, Server]]:
    """A cluster with two servers that run for the whole module."""
    with run_cluster(tmp_path_factory.mktemp("pair")) as cluster, cluster.server(0) as here, cluster.server(1) as there:
        yield cluster, here, there


def final_state(server: Server, task_id: str) -> dict[str, Any]:
    """Follow a task by its events to the last one."""
    events = server.get(f"/tasks/{task_id}/events", stream=True, timeout=20)
    shown = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith(b"data: ")]
    return dict(shown[-1])


def test_a_task_of_one_server_can_be_polled_followed_and_canceled_on_another(
    pair: tuple[Cluster, Server, Server],
) -> None:
    cluster, here, there = pair
    with paused(cluster.pause_file(0), cluster.pause_file(1)), ThreadPoolExecutor(1) as pool:
        task_id = here.post("/generate-async", json=REQUEST).json()["task_id"]
        wait_until(lambda: there.get(f"/tasks/{task_id}").json()["state"] == "processing")
        assert [task["task_id"] for task in there.get("/tasks").json()["tasks"]] == [task_id]
        followed = pool.submit(final_state, there, task_id)
        assert there.delete(f"/tasks/{task_id}").status_code == 202
        assert followed.result(20)["status"] == "canceled"
    assert here.get(f"/tasks/{task_id}").json()["status"] == "canceled"


def test_a_repeated_request_gets_the_same_task_from_every_server(pair: tuple[Cluster, Server, Server]) -> None:
    _, here, there = pair
    headers = {"Idempotency-Key": "once"}
    responses = [server.post("/generate-async", json=REQUEST, headers=headers).json() for server in (here, there)]
    assert responses[0]["task_id"] == responses[1]["task_id"]
    other = there.post("/generate-async", json=REQUEST | {"duration": 2}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_every_server_serves_the_audio_of_the_others(pair: tuple[Cluster, Server, Server]) -> None:
    _, here, there = pair
    made = here.post("/generate", json=REQUEST).json()
    audio = there.get(made["audio_url"])
    assert audio.status_code == 200
    assert audio.content == here.get(made["audio_url"]).content
    part = there.get(made["audio_url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")


class Clients:
    """Send requests through the proxy without a pause, and collect unexpected responses."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._loops = [self._pool.submit(self._loop, send) for send in (self._generate, self._submit) for _ in range(2)]
        self.failures: list[str] = []
        self.num_responses: Counter[str] = Counter()

    def wait_for_responses(self, num_responses: int = 20) -> None:
        """Wait until this many more responses have arrived."""
        until = self.num_responses.total() + num_responses
        wait_until(lambda: self.num_responses.total() >= until)

    def stop(self) -> None:
        self._stop.set()
        for loop in self._loops:
            loop.result(30)
        self._pool.shutdown()

    def _loop(self, send: Callable[[], None]) -> None:
        while not self._stop.is_set():
            send()

    def _generate(self) -> None:
        response = self._expect(200, self._cluster.post("/generate"))
        self._expect(200, self._cluster.get(response.get("audio_url", "/nothing")))

    def _submit(self) -> None:
        path = f"/tasks/{self._expect(202, self._cluster.post('/generate-async')).get('task_id')}"
        until = time.monotonic() + 20
        while (task := self._expect(200, self._cluster.get(path))).get("status") == "processing":
            if time.monotonic() > until:
                break
            self._stop.wait(0.05)
        if task.get("status") != "completed":
            self.failures.append(f"{path}: {task}")

    def _expect(self, status: int, response: requests.Response) -> dict[str, Any]:
        self.num_responses[response.request.path_url.split("/")[1]] += 1
        if response.status_code != status:
            self.failures.append(f"{response.request.path_url}: {response.status_code} {response.text[:200]}")
        is_json = response.headers.get("Content-Type") == "application/json"
        return dict(response.json()) if is_json else {}


@pytest.mark.fault
@pytest.mark.parametrize("backend", ["embedded", "celery"])
def test_servers_can_be_restarted_one_by_one_without_a_failed_request(cluster: Cluster, backend: str) -> None:
    with ExitStack() as stack:
        if backend == "celery":
            stack.enter_context(cluster.worker())
        servers = [stack.enter_context(cluster.server(number, task_backend=backend)) for number in range(2)]
        clients = Clients(cluster)
        try:
            for number in range(2):
                clients.wait_for_responses()
                assert servers[number].terminate() == 0
                clients.wait_for_responses()
                servers[number] = stack.enter_context(cluster.server(number, task_backend=backend))
        finally:
            clients.stop()
        assert clients.failures == []
        assert all("POST /generate 200" in server.log for server in servers)


def test_a_task_of_a_stopped_server_runs_on_another(cluster: Cluster) -> None:
    with cluster.server(0, graceful_timeout_seconds=1) as here, paused(cluster.pause_file(0)):
        task_id = here.post("/generate-async", json=REQUEST).json()["task_id"]
        wait_until(lambda: here.num_running() == 1)
        with cluster.server(1) as there:
            assert here.terminate() == 0
            assert final_state(there, task_id)["status"] == "completed"


def test_a_request_that_a_stopping_server_cancels_is_retried_on_another(cluster: Cluster) -> None:
    cluster.pause_file(0).parent.mkdir()
    with (
        cluster.server(0, graceful_timeout_seconds=1) as here,
        paused(cluster.pause_file(0)),
        ThreadPoolExecutor(1) as pool,
    ):
        response = pool.submit(cluster.post, "/generate")
        wait_until(lambda: here.num_running() == 1)
        with cluster.server(1) as there:
            assert here.terminate() == 0
            assert response.result(20).status_code == 200
            assert "POST /generate 503" in here.log
            assert "POST /generate 200" in there.log


def test_a_request_that_kills_its_server_is_not_retried(cluster: Cluster) -> None:
    with cluster.server(0) as here, paused(cluster.pause_file(0)), ThreadPoolExecutor(1) as pool:
        response = pool.submit(cluster.post, "/generate")
        wait_until(lambda: here.num_running() == 1)
        with cluster.server(1) as there:
            here.kill()
            refused = response.result(20)
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert refused.headers["Retry-After"]
            assert refused.headers["X-Request-ID"] == refused.json()["request_id"]
            assert "POST /generate" not in there.log


def test_errors_of_the_proxy_have_the_shape_of_the_services_errors(cluster: Cluster) -> None:
    for response, status, code in (
        (cluster.get("/health"), 503, "unavailable"),
        (requests.post(cluster.url + "/generate", data=b" " * 22 * 2**20, timeout=20), 413, "payload_too_large"),
        (cluster.get("/metrics"), 404, "not_found"),
    ):
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.json()["error"].endswith(".")
        assert response.headers["X-Request-ID"] == response.json()["request_id"]


def test_the_proxy_does_not_buffer_streams(cluster: Cluster) -> None:
    with cluster.server(0), paused(cluster.pause_file(0)):
        response = cluster.post("/generate-async", headers={"X-Request-ID": "my-own"})
        assert response.headers["X-Request-ID"] == "my-own"
        events = cluster.get(response.json()["events_url"], stream=True).iter_lines()
        assert next(line for line in events if line.startswith(b"data: "))  # while the task is queued
        socket = Client.connect(cluster.url.replace("http", "ws") + "/ws/generate")
        socket.send(json.dumps(REQUEST))
        assert json.loads(socket.receive(timeout=10))["type"] == "accepted"
        cluster.pause_file(0).unlink()
        messages = iter(lambda: socket.receive(timeout=10), None)
        assert "done" in (json.loads(message)["type"] for message in messages if isinstance(message, str))
        assert "completed" in (json.loads(line[6:])["status"] for line in events if line.startswith(b"data: "))


# --- keys


@pytest.fixture
def operate(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Run a command of the operator on the cluster's Redis."""
    monkeypatch.setenv("AUDIOCRAFT_API_STATE_BACKEND", "redis")
    monkeypatch.setenv("AUDIOCRAFT_API_REDIS_URL", cluster.redis.url)

    def run(*command: str) -> dict[str, Any]:
        main([*command, "--json"])
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_creating_and_revoking_a_key_takes_effect_on_every_server(
    cluster: Cluster, operate: Callable[..., dict[str, Any]]
) -> None:
    ours, theirs = (operate("keys", "create", "--name", name) for name in ("ours", "theirs"))
    headers = {"X-API-Key": ours["key"]}
    with cluster.server(0) as here, cluster.server(1) as there:
        assert [server.post("/generate", json=REQUEST).status_code for server in (here, there)] == [401, 401]
        made = here.post("/generate", json=REQUEST, headers=headers).json()
        task_id = here.post("/generate-async", json=REQUEST, headers=headers).json()["task_id"]
        for path in (made["audio_url"], f"/tasks/{task_id}"):
            assert there.get(path, headers=headers).status_code == 200
            assert there.get(path, headers={"X-API-Key": theirs["key"]}).status_code == 404
            assert there.get(path).status_code == 401
        operate("keys", "revoke", ours["id"])
        for server in (here, there):
            wait_until(lambda server=server: server.get("/tasks", headers=headers).status_code == 401)
            assert server.get("/tasks", headers={"X-API-Key": theirs["key"]}).status_code == 200


# --- limits


def test_limits_of_a_key_count_requests_to_all_servers(
    cluster: Cluster, operate: Callable[..., dict[str, Any]]
) -> None:
    operate("keys", "create", "--name", "first")  # so that both servers require a key from the start
    with cluster.server(0) as here, cluster.server(1) as there, ThreadPoolExecutor(8) as pool:

        def key(*limits: str) -> dict[str, str]:
            headers = {"X-API-Key": operate("keys", "create", "--name", "limited", *limits)["key"]}
            for server in (here, there):
                wait_until(lambda server=server: server.get("/tasks", headers=headers).ok)
            return headers

        for limit, code in (
            (("--requests-per-minute", "7"), "rate_limited"),
            (("--requests-per-day", "7"), "quota_exceeded"),
            (("--audio-seconds-per-day", "7"), "quota_exceeded"),
        ):
            headers = key(*limit)
            requests_to_send = [
                lambda server=server, headers=headers: server.post("/generate", json=REQUEST, headers=headers)
                for server in (here, there)
            ]
            responses = [
                response.result(60) for response in [pool.submit(requests_to_send[number % 2]) for number in range(20)]
            ]
            assert Counter(response.status_code for response in responses) == {200: 7, 429: 13}
            assert {response.json()["code"] for response in responses if response.status_code == 429} == {code}
            through_proxy = cluster.post("/generate", headers=headers)
            assert (through_proxy.status_code, through_proxy.json()["code"]) == (429, code)
        headers = key("--concurrent-tasks", "3")
        with paused(cluster.pause_file(0), cluster.pause_file(1)):
            responses = [server.post("/generate-async", json=REQUEST, headers=headers) for server in 4 * (here, there)]
            assert Counter(response.status_code for response in responses) == {202: 3, 429: 5}


@pytest.mark.timing  # a request more is allowed every twelve seconds
def test_limits_of_an_address_count_requests_to_all_servers_and_trust_the_proxy(cluster: Cluster) -> None:
    settings = {"address_requests_per_minute": 5, "trusted_proxies": 1}
    with cluster.server(0, **settings) as here, cluster.server(1, **settings) as there:
        spoofed = [{"X-Forwarded-For": f"10.0.0.{number}"} for number in range(10)]
        responses = [cluster.post("/generate", headers=headers) for headers in spoofed]
        assert Counter(response.status_code for response in responses) == {200: 5, 429: 5}
        assert all("POST /generate" in server.log for server in (here, there))
