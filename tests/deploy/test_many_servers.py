"""Several servers behind the nginx that is shipped, with one Redis and one audio directory: clients see one service."""

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
from support.served import Server, free_port, serve, wait_until

FAKE = "support.served:app"
HOSTS = ("127.0.0.1", "127.0.0.2")  # Linux has all of 127.0.0.0/8
REQUEST: dict[str, Any] = {"prompt": "solo cello", "duration": 1}


@dataclass
class House:
    """A proxy, and two servers that may be stopped and started again."""

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
            wait_until(lambda: "Takes tasks from" in worker.log, 20)
            yield
        finally:
            worker.kill()

    def _shared(self) -> dict[str, Any]:
        """Return the settings that all have."""
        return {
            "state_backend": "redis",
            "redis_url": self.redis.url,
            "audio_dir": self.directory / "audio",
            "max_queued_tasks": 10_000,
        }

    def hold(self, number: int) -> Path:
        """Return the file that holds up a server's generations while it is there."""
        return self.directory / f"server-{number}" / "hold"

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=20, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=REQUEST, timeout=60, **options)


@contextmanager
def open_house(directory: Path) -> Iterator[House]:
    (directory / "redis").mkdir()
    redis = RedisServer(directory / "redis")
    redis.start()
    port = free_port()
    try:
        with proxy(directory, list(HOSTS), port) as url:
            yield House(directory, redis, port, url)
    finally:
        redis.kill()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house of a test's own, whose servers come and go."""
    with open_house(tmp_path) as house:
        yield house


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Server, Server]]:
    """A house with two servers that stay."""
    with open_house(tmp_path_factory.mktemp("pair")) as house, house.server(0) as here, house.server(1) as there:
        yield house, here, there


@contextmanager
def held(*files: Path) -> Iterator[None]:
    """Hold up the generations of some servers."""
    for file in files:
        file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def final_state(server: Server, task_id: str) -> dict[str, Any]:
    """Follow a task by its events to the last one."""
    events = server.get(f"/tasks/{task_id}/events", stream=True, timeout=20)
    shown = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith(b"data: ")]
    return dict(shown[-1])


def test_a_task_of_one_server_is_seen_followed_and_canceled_through_the_other(
    pair: tuple[House, Server, Server],
) -> None:
    house, here, there = pair
    with held(house.hold(0), house.hold(1)), ThreadPoolExecutor(1) as pool:
        task_id = here.post("/generate-async", json=REQUEST).json()["task_id"]
        wait_until(lambda: there.get(f"/tasks/{task_id}").json()["state"] == "processing")
        assert [task["task_id"] for task in there.get("/tasks").json()["tasks"]] == [task_id]
        followed = pool.submit(final_state, there, task_id)
        assert there.delete(f"/tasks/{task_id}").status_code == 202
        assert followed.result(20)["status"] == "canceled"
    assert here.get(f"/tasks/{task_id}").json()["status"] == "canceled"


def test_a_repeated_request_is_the_same_task_on_every_server(pair: tuple[House, Server, Server]) -> None:
    _, here, there = pair
    headers = {"Idempotency-Key": "once"}
    answers = [server.post("/generate-async", json=REQUEST, headers=headers).json() for server in (here, there)]
    assert answers[0]["task_id"] == answers[1]["task_id"]
    other = there.post("/generate-async", json=REQUEST | {"duration": 2}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_audio_that_one_server_made_is_served_by_the_other(pair: tuple[House, Server, Server]) -> None:
    _, here, there = pair
    made = here.post("/generate", json=REQUEST).json()
    audio = there.get(made["audio_url"])
    assert audio.status_code == 200
    assert audio.content == here.get(made["audio_url"]).content
    part = there.get(made["audio_url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")


class Clients:
    """Ask again and again, through the proxy, and remember what was answered wrongly."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._loops = [self._pool.submit(self._loop, ask) for ask in (self._generate, self._submit) for _ in range(2)]
        self.failures: list[str] = []
        self.num_answers: Counter[str] = Counter()

    def go_on(self, num_answers: int = 20) -> None:
        """Return once so many more answers have come."""
        until = self.num_answers.total() + num_answers
        wait_until(lambda: self.num_answers.total() >= until, 20)

    def stop(self) -> None:
        self._stop.set()
        for loop in self._loops:
            loop.result(30)
        self._pool.shutdown()

    def _loop(self, ask: Any) -> None:
        while not self._stop.is_set():
            ask()

    def _generate(self) -> None:
        answer = self._expect(200, self._house.post("/generate"))
        self._expect(200, self._house.get(answer.get("audio_url", "/nothing")))

    def _submit(self) -> None:
        path = f"/tasks/{self._expect(202, self._house.post('/generate-async')).get('task_id')}"
        until = time.monotonic() + 20
        while (task := self._expect(200, self._house.get(path))).get("status") == "processing":
            if time.monotonic() > until:
                break
            self._stop.wait(0.05)
        if task.get("status") != "completed":
            self.failures.append(f"{path}: {task}")

    def _expect(self, status: int, response: requests.Response) -> dict[str, Any]:
        self.num_answers[response.request.path_url.split("/")[1]] += 1
        if response.status_code != status:
            self.failures.append(f"{response.request.path_url}: {response.status_code} {response.text[:200]}")
        is_json = response.headers.get("Content-Type") == "application/json"
        return dict(response.json()) if is_json else {}


@pytest.mark.parametrize("backend", ["embedded", pytest.param("celery", marks=pytest.mark.fault)])
def test_either_server_may_be_stopped_and_started_again_without_a_failed_request(house: House, backend: str) -> None:
    with ExitStack() as stack:
        if backend == "celery":
            stack.enter_context(house.worker())
        servers = [stack.enter_context(house.server(number, task_backend=backend)) for number in range(2)]
        clients = Clients(house)
        try:
            for number in range(2):
                clients.go_on()
                assert servers[number].terminate() == 0
                clients.go_on()
                servers[number] = stack.enter_context(house.server(number, task_backend=backend))
        finally:
            clients.stop()
        assert clients.failures == []
        assert all("POST /generate 200" in server.log for server in servers)
    print(dict(clients.num_answers))


def test_a_task_goes_on_at_another_server_when_its_own_is_stopped(house: House) -> None:
    with house.server(0, graceful_timeout_seconds=1) as here, held(house.hold(0)):
        task_id = here.post("/generate-async", json=REQUEST).json()["task_id"]
        wait_until(lambda: here.num_running() == 1)
        with house.server(1) as there:
            assert here.terminate() == 0
            assert final_state(there, task_id)["status"] == "completed"


def test_a_request_that_a_server_gives_up_as_it_stops_is_made_by_another(house: House) -> None:
    house.hold(0).parent.mkdir()
    with house.server(0, graceful_timeout_seconds=1) as here, held(house.hold(0)), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(house.post, "/generate")
        wait_until(lambda: here.num_running() == 1)
        with house.server(1) as there:
            assert here.terminate() == 0
            assert answer.result(20).status_code == 200
            assert "POST /generate 503" in here.log
            assert "POST /generate 200" in there.log


def test_a_request_that_kills_its_server_is_not_sent_to_the_next(house: House) -> None:
    with house.server(0) as here, held(house.hold(0)), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(house.post, "/generate")
        wait_until(lambda: here.num_running() == 1)
        with house.server(1) as there:
            here.kill()
            refused = answer.result(20)
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert refused.headers["Retry-After"]
            assert refused.headers["X-Request-ID"] == refused.json()["request_id"]
            assert "POST /generate" not in there.log


def test_the_proxy_answers_in_the_services_shape_when_it_answers_itself(house: House) -> None:
    for response, status, code in (
        (house.get("/health"), 503, "unavailable"),
        (requests.post(house.url + "/generate", data=b" " * 22 * 2**20, timeout=20), 413, "payload_too_large"),
        (house.get("/metrics"), 404, "not_found"),
    ):
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.json()["error"].endswith(".")
        assert response.headers["X-Request-ID"] == response.json()["request_id"]


def test_streams_come_through_the_proxy_as_they_are_sent(house: House) -> None:
    with house.server(0), held(house.hold(0)):
        answer = house.post("/generate-async", headers={"X-Request-ID": "my-own"})
        assert answer.headers["X-Request-ID"] == "my-own"
        events = house.get(answer.json()["events_url"], stream=True).iter_lines()
        assert next(line for line in events if line.startswith(b"data: "))  # while the task waits
        socket = Client.connect(house.url.replace("http", "ws") + "/ws/generate")
        socket.send(json.dumps(REQUEST))
        assert json.loads(socket.receive(timeout=10))["type"] == "accepted"
        house.hold(0).unlink()
        messages = iter(lambda: socket.receive(timeout=10), None)
        assert "done" in (json.loads(message)["type"] for message in messages if isinstance(message, str))
        assert "completed" in (json.loads(line[6:])["status"] for line in events if line.startswith(b"data: "))


# --- keys


@pytest.fixture
def operate(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Run the operator's command on the house's Redis."""
    monkeypatch.setenv("AUDIOCRAFT_API_STATE_BACKEND", "redis")
    monkeypatch.setenv("AUDIOCRAFT_API_REDIS_URL", house.redis.url)

    def run(*command: str) -> dict[str, Any]:
        main([*command, "--json"])
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_a_key_is_made_once_for_all_servers_and_revoked_for_all(
    house: House, operate: Callable[..., dict[str, Any]]
) -> None:
    ours, theirs = (operate("keys", "create", "--name", name) for name in ("ours", "theirs"))
    headers = {"X-API-Key": ours["key"]}
    with house.server(0) as here, house.server(1) as there:
        assert [server.post("/generate", json=REQUEST).status_code for server in (here, there)] == [401, 401]
        made = here.post("/generate", json=REQUEST, headers=headers).json()
        task_id = here.post("/generate-async", json=REQUEST, headers=headers).json()["task_id"]
        for path in (made["audio_url"], f"/tasks/{task_id}"):
            assert there.get(path, headers=headers).status_code == 200
            assert there.get(path, headers={"X-API-Key": theirs["key"]}).status_code == 404
            assert there.get(path).status_code == 401
        operate("keys", "revoke", ours["id"])
        for server in (here, there):
            wait_until(lambda server=server: server.get("/tasks", headers=headers).status_code == 401, 2)
            assert server.get("/tasks", headers={"X-API-Key": theirs["key"]}).status_code == 200


# --- limits


def test_what_a_key_may_have_is_counted_over_all_servers(house: House, operate: Callable[..., dict[str, Any]]) -> None:
    operate("keys", "create", "--name", "first")  # so that both servers ask for one from their start
    with house.server(0) as here, house.server(1) as there, ThreadPoolExecutor(8) as pool:

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
            ask = [
                lambda server=server, headers=headers: server.post("/generate", json=REQUEST, headers=headers)
                for server in (here, there)
            ]
            answers = [answer.result(60) for answer in [pool.submit(ask[number % 2]) for number in range(20)]]
            assert Counter(answer.status_code for answer in answers) == {200: 7, 429: 13}
            assert {answer.json()["code"] for answer in answers if answer.status_code == 429} == {code}
            through_proxy = house.post("/generate", headers=headers)
            assert (through_proxy.status_code, through_proxy.json()["code"]) == (429, code)
        headers = key("--concurrent-tasks", "3")
        with held(house.hold(0), house.hold(1)):
            answers = [server.post("/generate-async", json=REQUEST, headers=headers) for server in 4 * (here, there)]
            assert Counter(answer.status_code for answer in answers) == {202: 3, 429: 5}


def test_an_address_is_counted_over_all_servers_as_the_proxy_saw_it(house: House) -> None:
    settings = {"address_requests_per_minute": 5, "trusted_proxies": 1}
    with house.server(0, **settings) as here, house.server(1, **settings) as there:
        spoofed = [{"X-Forwarded-For": f"10.0.0.{number}"} for number in range(10)]
        answers = [house.post("/generate", headers=headers) for headers in spoofed]
        assert Counter(answer.status_code for answer in answers) == {200: 5, 429: 5}
        assert all("POST /generate" in server.log for server in (here, there))
