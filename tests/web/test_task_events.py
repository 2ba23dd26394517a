"""The server-sent events of a task: their content, and how streams resume and end. The engine is a fake."""

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


class EventStream:
    """Reads the events of a response one by one, as an EventSource does."""

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


def follow(client: FlaskClient, task_id: str, last_event_id: int | str | None = None) -> EventStream:
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    return EventStream(client.get(f"/tasks/{task_id}/events", headers=headers))


def test_events_report_every_state_up_to_the_final_one(client: FlaskClient, engine: FakeEngine) -> None:
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


def test_a_changed_queue_position_is_an_event(client: FlaskClient, engine: FakeEngine) -> None:
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


def test_a_client_that_reconnects_resumes_after_its_last_event(client: FlaskClient, engine: FakeEngine) -> None:
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


def test_the_final_state_is_sent_to_late_clients_once(client: FlaskClient) -> None:
    task_id = submit(client)
    wait_for(client, task_id)
    ((version, data),) = follow(client, task_id)
    assert data["state"] == "completed"
    assert [seen for seen, _ in follow(client, task_id, 1)] == [version]
    for odd in ("nonsense", "-1", "9" * 40, str(version + 1)):
        assert [seen for seen, _ in follow(client, task_id, odd)] == [version]
    response = client.get(f"/tasks/{task_id}/events", headers={"Last-Event-ID": str(version)})
    assert (response.status_code, response.get_data()) == (204, b"")


def test_failed_and_canceled_tasks_end_a_stream_too(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = submit(client)
    stream = follow(client, task_id)
    next(stream)
    client.delete(f"/tasks/{task_id}")
    assert [data["state"] for _, data in stream][-1] == "canceled"
    engine.failure = GenerationFailed("The model cannot generate this sound.")
    engine.open_gate.set()
    *_, (_, data) = follow(client, submit(client))
    assert (data["state"], data["code"]) == ("failed", "generation_failed")


@pytest.mark.timing
def test_comments_are_sent_when_there_are_no_events(open_client: OpenClient, engine: FakeEngine) -> None:
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


def test_over_the_limit_a_stream_is_503_until_another_closes(open_client: OpenClient, engine: FakeEngine) -> None:
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
def test_streams_do_not_delay_health_and_end_when_their_clients_disconnect(tmp_path: Path) -> None:
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
