"""The server-sent events of a task: what they carry, how they resume and end. The engine is a fake of fixed speed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import assert_error, fake_app
from support.served import serve, wait_until
from support.tasks import REQUEST, submit, wait_for

OpenClient = Callable[..., FlaskClient]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def open_client(tmp_path: Path, engine: FakeEngine) -> Iterator[OpenClient]:
    apps = []

    def open_client(**settings: Any) -> FlaskClient:
        apps.append(fake_app(tmp_path, engine, **{"task_concurrency": 1} | settings))
        return apps[-1].test_client()

    yield open_client
    engine.open_gate.set()
    for app in apps:
        services_of(app).close()


@pytest.fixture
def client(open_client: OpenClient) -> FlaskClient:
    return open_client()


class Stream:
    """Reads the events of an answer one by one, as an EventSource does."""

    def __init__(self, response: TestResponse) -> None:
        assert response.status_code == 200, response.get_data()
        self.response = response
        self.comments: list[str] = []
        self.retry_milliseconds: int | None = None
        self._blocks = (block for piece in response.response for block in _text(piece).split("\n\n") if block)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self

    def __next__(self) -> tuple[int, dict[str, Any]]:
        for block in self._blocks:
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            self.comments += [line for line in block.split("\n") if line.startswith(":")]
            if "retry" in fields:
                self.retry_milliseconds = int(fields["retry"])
            if "data" in fields:
                return int(fields["id"]), json.loads(fields["data"])
        self.response.close()
        raise StopIteration


def _text(piece: bytes | str) -> str:
    return piece if isinstance(piece, str) else piece.decode()


def follow(client: FlaskClient, task_id: str, last_event_id: int | str | None = None) -> Stream:
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    return Stream(client.get(f"/tasks/{task_id}/events", headers=headers))


def test_events_tell_the_way_to_the_final_state_and_end(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = submit(client)
    stream = follow(client, task_id)
    assert stream.response.mimetype == "text/event-stream"
    assert stream.response.headers["Cache-Control"] == "no-store"
    events = []
    for version, data in stream:
        events.append((version, data))
        if data["state"] == "processing" and data["total"]:
            engine.open_gate.set()
    assert stream.retry_milliseconds == 1000
    versions = [version for version, _ in events]
    assert versions == sorted(set(versions))
    last = events[-1][1]
    assert [data["state"] for _, data in events].count("completed") == 1
    assert (last["state"], last["task_id"]) == ("completed", task_id)
    assert last == client.get(f"/tasks/{task_id}").json
    assert any(data["total"] == 50 for _, data in events if data["status"] == "processing")


def test_a_change_of_the_place_in_the_queue_is_told(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    running, first, second = (submit(client) for _ in range(3))
    wait_for(client, running, "processing")
    stream = follow(client, second)
    _, data = next(stream)
    assert data["queue_position"] == 2
    client.delete(f"/tasks/{first}")
    _, data = next(stream)
    assert (data["state"], data["queue_position"]) == ("queued", 1)
    stream.response.close()


def test_a_client_that_comes_back_goes_on_after_its_last_event(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = submit(client)
    wait_for(client, task_id, "processing")
    stream = follow(client, task_id)
    seen, data = next(stream)
    while not data["total"]:
        seen, data = next(stream)
    stream.response.close()
    engine.open_gate.set()
    events = list(follow(client, task_id, seen))
    assert all(version > seen for version, _ in events)
    assert events[-1][1]["state"] == "completed"


def test_the_final_state_is_told_late_and_then_there_is_nothing_more(client: FlaskClient) -> None:
    task_id = submit(client)
    wait_for(client, task_id)
    ((version, data),) = follow(client, task_id)
    assert data["state"] == "completed"
    assert [seen for seen, _ in follow(client, task_id, 1)] == [version]
    for odd in ("nonsense", "-1", "9" * 40, str(version + 1)):
        assert [seen for seen, _ in follow(client, task_id, odd)] == [version]
    response = client.get(f"/tasks/{task_id}/events", headers={"Last-Event-ID": str(version)})
    assert (response.status_code, response.get_data()) == (204, b"")


def test_failed_and_canceled_end_a_stream_too(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = submit(client)
    stream = follow(client, task_id)
    next(stream)
    client.delete(f"/tasks/{task_id}")
    assert [data["state"] for _, data in stream][-1] == "canceled"
    engine.failure = GenerationFailed("The model makes no such sound.")
    engine.open_gate.set()
    *_, (_, data) = follow(client, submit(client))
    assert (data["state"], data["code"]) == ("failed", "generation_failed")


@pytest.mark.timing
def test_silence_is_filled_with_comments(open_client: OpenClient, engine: FakeEngine) -> None:
    client = open_client(event_heartbeat_seconds=0.1)
    engine.open_gate.clear()
    task_id = submit(client)
    wait_for(client, task_id, "processing")
    stream = follow(client, task_id)
    pieces = (_text(piece) for piece in stream.response.response)
    started = time.monotonic()
    assert sum(piece.startswith(":") for piece, _ in zip(pieces, range(8), strict=False)) >= 3
    assert time.monotonic() - started < 5
    stream.response.close()


def test_over_the_cap_the_answer_is_503_and_a_closed_stream_makes_room(
    open_client: OpenClient, engine: FakeEngine
) -> None:
    client = open_client(max_streams=2)
    engine.open_gate.clear()
    task_id = submit(client)
    streams = [follow(client, task_id) for _ in range(2)]
    for stream in streams:
        next(stream)
    response = client.get(f"/tasks/{task_id}/events")
    assert_error(response, 503, "too_many_streams")
    assert "Retry-After" in response.headers
    streams[0].response.close()
    third = follow(client, task_id)
    next(third)
    for stream in (streams[1], third):
        stream.response.close()
    assert services_of(client.application).stream_slots.num_open == 0


@pytest.mark.timing
def test_a_stopping_server_ends_its_streams(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    stream = follow(client, submit(client))
    next(stream)
    services_of(client.application).draining.set()
    started = time.monotonic()
    list(stream)
    assert time.monotonic() - started < 1
    services_of(client.application).draining.clear()
    stream.response.close()


def test_an_expired_task_ends_its_stream(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = submit(client)
    stream = follow(client, task_id)
    next(stream)
    client.delete(f"/tasks/{task_id}")
    wait_for(client, task_id, "canceled")
    services_of(client.application).tasks._store.expire(time.time() + 1)  # type: ignore[attr-defined]
    list(stream)
    assert client.get(f"/tasks/{task_id}").status_code == 404


@pytest.mark.timing
def test_streams_do_not_hold_up_health_and_end_when_their_clients_leave(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    with serve(tmp_path, "support.served:app", threads=8) as server:
        task_id = server.post("/generate-async", json=REQUEST).json()["task_id"]
        streams = [server.get(f"/tasks/{task_id}/events", stream=True) for _ in range(3)]
        assert [stream.status_code for stream in streams] == [200, 200, 503]  # a quarter of the threads
        for _ in range(10):
            started = time.monotonic()
            assert server.get("/health").status_code == 200
            assert time.monotonic() - started < 1
        for stream in streams:
            stream.close()
        wait_until(lambda: server.get(f"/tasks/{task_id}/events", stream=True).status_code == 200)
        (tmp_path / "hold").unlink()
        text = server.get(f"/tasks/{task_id}/events").text
        assert '"state": "completed"' in text
