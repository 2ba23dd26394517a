"""Ownership: tasks and audio of one caller do not exist for another caller, with every state store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from audiocraft_api.web.services import services_of
from support.celery_workplace import CeleryWorkplace
from support.fakes import FakeEngine
from support.http import fake_app
from support.keys import create_key, with_key
from support.served import wait_until

UNKNOWN = "53f5808b-70f6-4e39-9600-4adbf18dca4d"
REQUEST = {"prompt": "solo cello", "duration": 1}


class Caller:
    """A client with an API key."""

    def __init__(self, client: FlaskClient, key: str) -> None:
        self._client = client
        self.key_id = key.split("_")[1]
        self._headers = with_key(key)

    def open(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> TestResponse:
        return self._client.open(path, method=method, headers=self._headers | (headers or {}), buffered=True, **options)

    def get(self, path: str) -> TestResponse:
        return self.open("GET", path)

    def submit(self, **headers: str) -> str:
        response = self.open("POST", "/generate-async", headers, json=REQUEST)
        assert response.status_code == 202
        return str(response.json["task_id"])

    def finish(self, task_id: str) -> dict[str, Any]:
        def has_ended() -> bool:
            return bool(self.get(f"/tasks/{task_id}").json["status"] != "processing")

        wait_until(has_ended)
        task: dict[str, Any] = self.get(f"/tasks/{task_id}").json
        assert task["status"] == "completed"
        return task


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryWorkplace]:
    with CeleryWorkplace(tmp_path_factory.mktemp("celery"), task_concurrency=2).opened() as workplace:
        yield workplace


@pytest.fixture(params=["sqlite", "redis", "celery"])
def app(request: pytest.FixtureRequest, tmp_path: Path, engine: FakeEngine) -> Iterator[Flask]:
    """An app that is not started and has no keys."""
    settings: dict[str, Any] = {}
    if request.param == "redis":
        settings = {"state_backend": "redis", "redis_url": request.getfixturevalue("redis_server").url}
    if request.param == "celery":
        settings = request.getfixturevalue("workplace").prepared_for(engine)
    app = fake_app(tmp_path, engine, **settings)
    yield app
    engine.open_gate.set()
    services_of(app).close()


@pytest.fixture
def callers(app: Flask) -> list[Caller]:
    # The scope `admin` gives no access to data of other owners.
    keys = [create_key(app), create_key(app, "read", "generate", "admin")]
    services_of(app).start()
    return [Caller(app.test_client(), key) for key in keys]


@pytest.fixture
def alice(callers: list[Caller]) -> Caller:
    return callers[0]


@pytest.fixture
def bob(callers: list[Caller]) -> Caller:
    return callers[1]


def assert_same_404(found: TestResponse, unknown: TestResponse) -> None:
    """Assert that both responses are 404 and equal, except for the request id."""
    assert (found.status_code, unknown.status_code) == (404, 404)
    assert set(found.headers.keys()) == set(unknown.headers.keys())
    bodies = [json.loads(response.data) if response.data else {} for response in (found, unknown)]
    assert [body.pop("request_id", None) is None for body in bodies] in ([True, True], [False, False])
    assert bodies[0] == bodies[1]


def test_a_task_of_another_owner_is_404_on_every_route(alice: Caller, bob: Caller, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = alice.submit()
    for method, path in (
        ("GET", "/tasks/{}"),
        ("DELETE", "/tasks/{}"),
        ("GET", "/tasks/{}/events"),
        ("HEAD", "/tasks/{}"),
    ):
        assert_same_404(bob.open(method, path.format(task_id)), bob.open(method, path.format(UNKNOWN)))
    assert alice.get(f"/tasks/{task_id}").json["cancel_requested"] is False
    engine.open_gate.set()
    alice.finish(task_id)
    for path in (f"/tasks/{task_id}", f"/tasks/{task_id}/events"):
        assert alice.get(path).status_code == 200
        assert bob.get(path).status_code == 404


def test_each_caller_lists_only_its_own_tasks(alice: Caller, bob: Caller) -> None:
    of_alice, of_bob = [alice.submit(), alice.submit()], [bob.submit()]
    for caller, expected in ((alice, of_alice), (bob, of_bob)):
        assert {task["task_id"] for task in caller.get("/tasks").json["tasks"]} == set(expected)
    page = alice.get("/tasks?limit=1").json
    older = bob.get(f"/tasks?cursor={page['next_cursor']}").json  # a cursor gives no access to another owner's tasks
    assert not [task for task in older["tasks"] if task["task_id"] in of_alice]


def test_audio_of_another_owner_is_404_for_every_kind_of_request(alice: Caller, bob: Caller) -> None:
    synchronous_url = alice.open("POST", "/generate", json=REQUEST).json["audio_url"]
    task = alice.finish(alice.submit())
    for url in (synchronous_url, task["audio_url"]):
        response = alice.get(url)
        assert response.status_code == 200
        assert alice.key_id not in url
        conditions: list[dict[str, str]] = [
            {},
            {"Range": "bytes=0-9"},
            {"Range": "bytes=999999999-"},
            {"If-None-Match": response.headers["ETag"]},
            {"If-None-Match": "*"},
            {"If-Modified-Since": response.headers["Last-Modified"]},
        ]
        for headers in conditions:
            for method in ("GET", "HEAD"):
                refused = bob.open(method, url, headers)
                assert_same_404(refused, bob.open(method, f"/audio/{UNKNOWN}.wav", headers))
        assert alice.open("GET", url, {"Range": "bytes=0-9"}).status_code == 206
        assert alice.open("GET", url, {"If-None-Match": response.headers["ETag"]}).status_code == 304
    assert task["result"]["filename"] == task["audio_url"].removeprefix("/audio/")


def test_no_path_reaches_the_directory_of_another_owner(alice: Caller, bob: Caller) -> None:
    name = alice.open("POST", "/generate", json=REQUEST).json["audio_url"].removeprefix("/audio/")
    for path in (
        f"{alice.key_id}/{name}",
        f"{alice.key_id}%2f{name}",
        f"..%2f{alice.key_id}%2f{name}",
        f"../{alice.key_id}/{name}",
    ):
        for caller in (alice, bob):
            assert caller.get(f"/audio/{path}").status_code == 404


def test_idempotency_keys_are_separate_for_each_caller(alice: Caller, bob: Caller) -> None:
    ids = [caller.submit(**{"Idempotency-Key": "same"}) for caller in (alice, bob, alice, bob)]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    other = REQUEST | {"duration": 2}
    assert bob.open("POST", "/generate-async", {"Idempotency-Key": "same"}, json=other).status_code == 422


def test_a_synchronous_request_that_runs_as_a_task_belongs_to_its_caller(alice: Caller, bob: Caller) -> None:
    response = alice.open("POST", "/generate", {"Prefer": "wait=10"}, json=REQUEST)
    assert response.status_code == 200
    assert alice.get(response.json["audio_url"]).status_code == 200
    assert bob.get(response.json["audio_url"]).status_code == 404
    accepted = alice.open("POST", "/generate", {"Prefer": "respond-async"}, json=REQUEST)
    assert bob.get(accepted.headers["Location"]).status_code == 404


def test_tasks_and_audio_created_before_the_first_key_are_inaccessible(app: Flask) -> None:
    services_of(app).start()
    client = app.test_client()
    url = client.post("/generate", json=REQUEST).json["audio_url"]
    task_id = client.post("/generate-async", json=REQUEST).json["task_id"]
    caller = Caller(client, create_key(app))
    wait_until(lambda: client.get("/models").status_code == 401)
    assert caller.get(url).status_code == caller.get(f"/tasks/{task_id}").status_code == 404
    assert caller.get("/tasks").json["tasks"] == []


def test_audio_links_may_be_public_while_tasks_are_not(tmp_path: Path) -> None:
    app = fake_app(tmp_path, audio_requires_key=False)
    alice, bob = (Caller(app.test_client(), key) for key in [create_key(app), create_key(app)])
    services_of(app).start()
    url = alice.open("POST", "/generate", json=REQUEST).json["audio_url"]
    task_id = alice.submit()
    task = alice.finish(task_id)
    anonymous = app.test_client()
    for link in (url, task["audio_url"]):
        assert anonymous.get(link, buffered=True).status_code == 200
        assert anonymous.get(link, headers=with_key("wrong"), buffered=True).status_code == 200
        assert bob.get(link).status_code == 200
    assert anonymous.get(f"/tasks/{task_id}").status_code == 401
    assert bob.get(f"/tasks/{task_id}").status_code == 404
    assert not [entry for entry in (tmp_path / "audio").iterdir() if entry.is_dir()]
    services_of(app).close()
