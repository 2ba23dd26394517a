"""The HTTP contract for tasks, with tasks run by the server itself and by a Celery worker.

The engine is a fake, except in the last test.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.config import Config
from audiocraft_api.core.errors import AudioCraftError, ModelUnavailable, StorageUnavailable, error_of
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.factory import create_app
from audiocraft_api.services import Services
from audiocraft_api.web.services import services_of
from support.celery_workplace import CeleryWorkplace
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, melody_file
from support.served import wait_until
from support.tasks import REQUEST, get_task, submit, wait_for

UNKNOWN_IDS = ["00000000-0000-4000-8000-000000000000", "nothing", "a" * 5000, "%00", "%ff", "0", "' OR 1=1--"]
COMMON_FIELDS = {"task_id", "state", "status", "model", "seed", "attempts", "created_at", "started_at", "finished_at"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryWorkplace]:
    with CeleryWorkplace(tmp_path_factory.mktemp("celery"), task_concurrency=2).opened() as workplace:
        yield workplace


@pytest.fixture(params=["embedded", "celery"])
def backend(request: pytest.FixtureRequest, engine: FakeEngine) -> dict[str, Any]:
    """The settings that select where tasks run."""
    if request.param == "embedded":
        return {}
    workplace: CeleryWorkplace = request.getfixturevalue("workplace")
    return workplace.prepared_for(engine)


@pytest.fixture
def open_client(tmp_path: Path, engine: FakeEngine, backend: dict[str, Any]) -> Iterator[Callable[..., FlaskClient]]:
    """Return a function that opens a client of a new app on the same files; close the apps at the end."""
    opened: list[Services] = []

    def open_client(**settings: Any) -> FlaskClient:
        app = fake_app(tmp_path, engine, **{"task_concurrency": 2} | backend | settings)
        opened.append(services_of(app))
        return app.test_client()

    yield open_client
    engine.open_gate.set()
    for services in opened:
        services.close()


@pytest.fixture
def client(open_client: Callable[..., FlaskClient]) -> FlaskClient:
    return open_client()


def run_task(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    return wait_for(client, submit(client, **fields))


class TestSubmitAndPoll:
    def test_submitting_responds_202_with_the_task_and_its_location(self, client: FlaskClient) -> None:
        response = client.post("/generate-async", json=REQUEST | {"seed": 7})
        assert response.status_code == 202
        body = response.json
        assert (body["status"], body["seed"]) == ("processing", 7)
        assert response.headers["Location"] == f"/tasks/{body['task_id']}"
        assert client.get(response.headers["Location"]).status_code == 200
        assert body["request_id"] == response.headers["X-Request-ID"]

    def test_polling_shows_processing_and_then_completed_with_the_file(
        self, client: FlaskClient, engine: FakeEngine
    ) -> None:
        engine.open_gate.clear()
        task_id = submit(client, output_format="mp3")
        wait_until(lambda: get_task(client, task_id)["total"] > 0)
        working = get_task(client, task_id)
        assert (working["status"], working["state"], working["current"], working["total"]) == (
            "processing",
            "processing",
            0,
            50,
        )
        engine.open_gate.set()
        done = wait_for(client, task_id)
        assert set(done) == COMMON_FIELDS | {"result", "audio_url"}
        assert (done["status"], done["attempts"]) == ("completed", 1)
        result = done["result"]
        assert (result["success"], result["format"], result["sample_rate"]) == (True, "mp3", 32_000)
        assert done["audio_url"] == f"/audio/{result['filename']}"
        assert client.get(done["audio_url"], buffered=True).mimetype == "audio/mpeg"
        times = [datetime.fromisoformat(done[name]) for name in ("created_at", "started_at", "finished_at")]
        assert times == sorted(times)

    def test_a_failed_task_has_its_error(self, client: FlaskClient, engine: FakeEngine) -> None:
        engine.failure = AudioCraftError("The model cannot generate this sound.")
        failed = run_task(client)
        assert set(failed) == COMMON_FIELDS | {"error", "code"}
        assert (failed["status"], failed["error"]) == ("failed", "The model cannot generate this sound.")
        assert failed["code"] == "internal_error"

    def test_defaults_match_the_synchronous_route(self, client: FlaskClient, engine: FakeEngine) -> None:
        wait_for(client, str(client.post("/generate-async", json={"prompt": "solo cello"}).json["task_id"]))
        assert client.post("/generate", json={"prompt": "solo cello"}).status_code == 200
        of_task, of_call = (vars(request.params) | {"seed": 0} for request in engine.submitted)
        assert of_task == of_call

    def test_errors_name_the_invalid_field(self, client: FlaskClient, engine: FakeEngine) -> None:
        for field, value in [("return_type", "url"), ("duration", 301), ("top_k", "1"), ("prompt", " "), ("x", 1)]:
            response = client.post("/generate-async", json=REQUEST | {field: value})
            assert_error(response, 400, "invalid_request", field)
        assert not engine.submitted
        assert client.get("/tasks").json["tasks"] == []

    @pytest.mark.parametrize("task_id", UNKNOWN_IDS)
    def test_an_unknown_id_is_404_on_every_route(self, client: FlaskClient, task_id: str) -> None:
        assert_error(client.get(f"/tasks/{task_id}"), 404, "not_found", details=["status"])
        for response in (
            client.delete(f"/tasks/{task_id}"),
            client.get(f"/tasks/{task_id}/events"),
        ):
            assert_error(response, 404, "not_found")

    def test_a_melody_is_stored_with_its_task(self, client: FlaskClient, engine: FakeEngine) -> None:
        form = {"prompt": "solo cello", "duration": "1", "melody": (melody_file(), "melody.wav")}
        response = client.post("/generate-with-melody-async", data=form)
        assert response.status_code == 202
        assert wait_for(client, response.json["task_id"])["model"] == "melody"
        melody = engine.submitted[0].params.melody
        assert melody is not None
        assert melody.waveform.shape == (1, 16_000)

    def test_a_missing_melody_file_gets_the_sentence_of_the_contract(self, client: FlaskClient) -> None:
        response = client.post("/generate-with-melody-async", data={"prompt": "solo cello"})
        body = assert_error(response, 400, "invalid_request", "melody")
        assert body["error"] == "No melody file provided"


class TestQueue:
    def test_queued_tasks_are_processing_and_have_a_position(self, client: FlaskClient, engine: FakeEngine) -> None:
        run_task(client)  # measures the speed, from which the ETA is estimated
        engine.open_gate.clear()
        task_ids = [submit(client) for _ in range(4)]
        for task_id in task_ids[:2]:
            wait_for(client, task_id, "processing")
        third, fourth = (get_task(client, task_id) for task_id in task_ids[2:])
        assert [third["status"], third["state"]] == ["processing", "queued"]
        assert [third["queue_position"], fourth["queue_position"]] == [1, 2]
        assert 0 <= third["eta_seconds"] <= fourth["eta_seconds"]
        assert get_task(client, task_ids[0])["queue_position"] is None
        wait_until(lambda: client.get("/health").json["queue"] == {"waiting": 2, "running": 2})
        engine.open_gate.set()
        assert {wait_for(client, task_id)["status"] for task_id in task_ids} == {"completed"}
        wait_until(lambda: client.get("/health").json["queue"] == {"waiting": 0, "running": 0})

    def test_over_the_limit_submitting_is_503_within_100_ms(
        self, open_client: Callable[..., FlaskClient], engine: FakeEngine
    ) -> None:
        client = open_client(max_queued_tasks=3)
        engine.open_gate.clear()
        running = [submit(client) for _ in range(2)]
        for task_id in running:
            wait_for(client, task_id, "processing")
        for _ in range(3):
            submit(client)
        times = []
        for _ in range(20):
            started = time.monotonic()
            response = client.post("/generate-async", json=REQUEST)
            times.append(time.monotonic() - started)
            assert_error(response, 503, "queue_full")
            assert int(response.headers["Retry-After"]) >= 1
        assert len(client.get("/tasks").json["tasks"]) == 5
        assert sorted(times)[-2] < 0.1  # one of twenty may hit a busy machine

    def test_a_new_process_resumes_the_remaining_tasks(
        self, open_client: Callable[..., FlaskClient], engine: FakeEngine
    ) -> None:
        engine.open_gate.clear()
        client = open_client()
        task_ids = [submit(client) for _ in range(4)]
        wait_for(client, task_ids[0], "processing")
        services_of(client.application).tasks.close()  # returns running tasks to the queue
        client = open_client()
        engine.open_gate.set()
        services_of(client.application).start()
        for task_id in task_ids:
            done = wait_for(client, task_id)
            assert (done["status"], done["attempts"]) == ("completed", 1)

    @pytest.mark.timing
    @pytest.mark.parametrize("backend", ["embedded"], indirect=True)
    def test_health_and_ready_do_not_wait_for_a_locked_store(self, client: FlaskClient) -> None:
        run_task(client)
        store = services_of(client.application).tasks._store  # type: ignore[attr-defined]
        with store._file.write(), store._file.read():
            started = time.monotonic()
            assert client.get("/health").status_code == 200
            assert client.get("/ready").status_code == 200
            assert time.monotonic() - started < 1


class TestCancel:
    def test_a_queued_task_is_canceled_immediately(self, client: FlaskClient, engine: FakeEngine) -> None:
        engine.open_gate.clear()
        task_ids = [submit(client) for _ in range(3)]
        wait_for(client, task_ids[1], "processing")
        for _ in range(2):
            response = client.delete(f"/tasks/{task_ids[2]}")
            assert (response.status_code, response.json["status"]) == (200, "canceled")
        assert set(response.json) == COMMON_FIELDS
        engine.open_gate.set()
        for task_id in task_ids[:2]:
            wait_for(client, task_id)
        assert len(engine.submitted) == 2

    @pytest.mark.timing
    def test_a_running_task_is_canceled_within_a_step(self, client: FlaskClient, engine: FakeEngine) -> None:
        engine.open_gate.clear()
        task_id = submit(client)
        wait_until(lambda: bool(engine.submitted))
        for _ in range(2):
            response = client.delete(f"/tasks/{task_id}")
            assert response.status_code in (200, 202)  # by the second call the task may have ended
        started = time.monotonic()
        assert wait_for(client, task_id)["status"] == "canceled"
        assert time.monotonic() - started < 1
        wait_until(lambda: engine.submitted[0].has_ended)

    @pytest.mark.parametrize("failure", [None, AudioCraftError("No.")])
    def test_canceling_a_finished_task_changes_nothing(
        self, client: FlaskClient, engine: FakeEngine, failure: AudioCraftError | None
    ) -> None:
        engine.failure = failure
        task_id = submit(client)
        before = wait_for(client, task_id)
        for _ in range(2):
            response = client.delete(f"/tasks/{task_id}")
            assert response.status_code == 200
            assert response.json == before


class TestList:
    def test_pages_list_tasks_from_newest_to_oldest(self, client: FlaskClient) -> None:
        task_ids = [submit(client) for _ in range(5)]
        seen, cursor, num_pages = [], None, 0
        while cursor or not num_pages:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = client.get("/tasks", query_string=query).json
            seen += [task["task_id"] for task in page["tasks"]]
            cursor, num_pages = page["next_cursor"], num_pages + 1
            if num_pages == 1:
                submit(client)  # a newer task must not shift the following pages
        assert seen == task_ids[::-1]
        assert num_pages == 3

    def test_a_list_shows_tasks_as_the_task_route_does(self, client: FlaskClient) -> None:
        done = run_task(client)
        assert client.get("/tasks").json == {"tasks": [done], "next_cursor": None}

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("limit=0", "limit"),
            ("limit=201", "limit"),
            ("limit=a", "limit"),
            ("cursor=-1", "cursor"),
            ("page=2", "page"),
            ("cursor=" + "9" * 30, "cursor"),
            ("limit=1&limit=2", "limit"),
        ],
    )
    def test_errors_name_the_invalid_query_parameter(self, client: FlaskClient, query: str, field: str) -> None:
        assert_error(client.get(f"/tasks?{query}"), 400, "invalid_request", field)


class TestAudioGone:
    def test_a_completed_task_without_its_file_is_410(self, client: FlaskClient) -> None:
        done = run_task(client)
        services_of(client.application).store.delete(done["result"]["filename"])
        assert_error(client.get(f"/tasks/{done['task_id']}"), 410, "audio_gone", details=["status"])
        assert_error(client.get(f"/tasks/{done['task_id']}/events"), 410, "audio_gone")
        assert client.delete(f"/tasks/{done['task_id']}").status_code == 200
        assert len(client.get("/tasks").json["tasks"]) == 1


class TestIdempotencyKey:
    def test_the_same_key_and_request_return_the_same_task_even_when_it_is_done(
        self, client: FlaskClient, engine: FakeEngine
    ) -> None:
        key = {"Idempotency-Key": "mine"}
        task_id = submit(client, key)
        assert submit(client, key) == task_id
        wait_for(client, task_id)
        response = client.post("/generate-async", json=REQUEST, headers=key)
        assert (response.status_code, response.json["task_id"]) == (202, task_id)
        assert response.json["status"] == "completed"
        assert len(engine.submitted) == 1
        assert submit(client, {"Idempotency-Key": "other"}) != task_id

    def test_the_same_key_with_another_request_is_422(self, client: FlaskClient) -> None:
        submit(client, {"Idempotency-Key": "mine"})
        response = client.post("/generate-async", json=REQUEST | {"seed": 1}, headers={"Idempotency-Key": "mine"})
        assert_error(response, 422, "idempotency_conflict")

    def test_melodies_count_as_part_of_the_request(self, client: FlaskClient) -> None:
        def send(**fields: Any) -> Any:
            form = {"prompt": "solo cello", "duration": "1", "melody": (melody_file(), "melody.wav")} | fields
            return client.post("/generate-with-melody-async", data=form, headers={"Idempotency-Key": "mine"})

        assert send().json["task_id"] == send().json["task_id"]
        louder = io.BytesIO()
        soundfile.write(louder, [0.2, -0.2] * 8000, 16_000, format="WAV")
        louder.seek(0)
        assert_error(send(melody=(louder, "melody.wav")), 422, "idempotency_conflict")

    def test_a_hundred_concurrent_posts_create_one_task(self, client: FlaskClient, engine: FakeEngine) -> None:
        app = client.application

        def send(_: int) -> str:
            return submit(app.test_client(), {"Idempotency-Key": "mine"})

        with ThreadPoolExecutor(20) as pool:
            task_ids = list(pool.map(send, range(100)))
        assert len(set(task_ids)) == 1
        wait_for(client, task_ids[0])
        assert len(engine.submitted) == 1

    @pytest.mark.parametrize("key", ["", "a b", "a" * 256, "ü"])
    def test_an_invalid_key_is_refused(self, client: FlaskClient, key: str) -> None:
        response = client.post("/generate-async", json=REQUEST, headers={"Idempotency-Key": key})
        assert_error(response, 400, "invalid_request", "Idempotency-Key")


class TestPrefer:
    def prefer(self, client: FlaskClient, value: str, **fields: Any) -> Any:
        return client.post("/generate", json=REQUEST | fields, headers={"Prefer": value})

    @pytest.mark.parametrize("value", ["respond-async", "Respond-Async; x=1", "handling=lenient, respond-async"])
    def test_respond_async_returns_a_task(self, client: FlaskClient, engine: FakeEngine, value: str) -> None:
        engine.open_gate.clear()
        response = self.prefer(client, value)
        assert (response.status_code, response.json["status"]) == (202, "processing")
        assert response.headers["Preference-Applied"] == "respond-async"
        engine.open_gate.set()
        wait_for(client, response.json["task_id"])
        assert client.get(response.headers["Location"]).json["status"] == "completed"

    @pytest.mark.parametrize("value", ["wait=30", 'wait="30"', "respond-async, wait=30, wait=0"])
    def test_within_the_wait_the_response_is_synchronous(self, client: FlaskClient, value: str) -> None:
        response = self.prefer(client, value, seed=3)
        assert response.status_code == 200
        plain = client.post("/generate", json=REQUEST | {"seed": 3}).json
        assert response.json.keys() == plain.keys()
        same = ["format", "sample_rate", "seed", "duration", "model", "revision"]
        assert {name: response.json[name] for name in same} == {name: plain[name] for name in same}
        assert "wait=30" in response.headers["Preference-Applied"]
        assert client.get(response.json["audio_url"], buffered=True).status_code == 200

    def test_base64_works_too(self, client: FlaskClient) -> None:
        audio = base64.b64decode(self.prefer(client, "wait=30", return_type="base64").json["audio"])
        assert soundfile.info(io.BytesIO(audio)).frames == 32_000

    @pytest.mark.timing
    def test_after_the_wait_the_response_is_the_task_and_the_generation_continues(
        self, client: FlaskClient, engine: FakeEngine
    ) -> None:
        engine.open_gate.clear()
        started = time.monotonic()
        response = self.prefer(client, "wait=1")
        assert 1 <= time.monotonic() - started < 3
        assert (response.status_code, response.headers["Preference-Applied"]) == (202, "wait=1")
        engine.open_gate.set()
        assert wait_for(client, response.json["task_id"])["status"] == "completed"

    def test_a_store_outage_during_the_wait_returns_the_task(
        self, client: FlaskClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine.open_gate.clear()

        def fail(*_: Any) -> None:
            raise StorageUnavailable("The task store cannot be used now.")

        with monkeypatch.context() as patch:
            patch.setattr(services_of(client.application).tasks.service, "wait_for_change", fail)
            response = client.post("/generate", json=REQUEST, headers={"Prefer": "wait=5"})
        assert response.status_code == 202
        engine.open_gate.set()
        assert client.get(f"/tasks/{response.json['task_id']}").status_code == 200

    def test_audio_is_sent_even_if_it_cannot_be_deleted_afterward(
        self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_filename: str) -> None:
            raise StorageUnavailable("The audio store cannot delete files now.")

        monkeypatch.setattr(services_of(client.application).store, "delete", fail)
        assert client.post("/generate", json=REQUEST | {"return_type": "base64"}).status_code == 200

    def test_errors_match_the_synchronous_route(self, client: FlaskClient, engine: FakeEngine) -> None:
        engine.failure = ModelUnavailable("The model cannot be loaded.", retry_after_seconds=0.1)
        response = self.prefer(client, "wait=30")
        assert_error(response, 503, "model_unavailable")
        assert "Retry-After" in response.headers

    @pytest.mark.parametrize("value", ["wait", "wait=-1", "wait=soon", "wait=1.5", "return=minimal", ","])
    def test_malformed_and_unknown_preferences_are_ignored(self, client: FlaskClient, value: str) -> None:
        response = self.prefer(client, value)
        assert response.status_code == 200
        assert "Preference-Applied" not in response.headers
        assert client.get("/tasks").json["tasks"] == []

    def test_melody_requests_may_prefer_too(self, client: FlaskClient) -> None:
        form = {"prompt": "solo cello", "duration": "1", "melody": (melody_file(), "melody.wav")}
        response = client.post("/generate-with-melody", data=form, headers={"Prefer": "respond-async"})
        assert response.status_code == 202
        assert wait_for(client, response.json["task_id"])["model"] == "melody"

    def test_a_repeated_key_gets_the_same_audio(self, client: FlaskClient) -> None:
        headers = {"Prefer": "wait=30", "Idempotency-Key": "mine"}
        first, second = (client.post("/generate", json=REQUEST, headers=headers).json for _ in range(2))
        assert first["audio_url"] == second["audio_url"]


def test_every_stored_code_is_restored_to_its_error() -> None:
    assert type(error_of("model_unavailable", "a")) is ModelUnavailable
    unknown = error_of("task_interrupted", "a")
    assert (unknown.code, unknown.status, unknown.message) == ("task_interrupted", 500, "a")


class BadEngine(FakeEngine):
    """Generates audio of NaN."""

    def _audio(self, request: EngineRequest, num_samples: int) -> Waveform:  # noqa: ARG002
        return np.full((1, num_samples), np.nan, np.float32)


def test_audio_of_nan_fails_the_task(tmp_path: Path) -> None:
    app = fake_app(tmp_path, BadEngine())
    client = app.test_client()
    failed = wait_for(client, submit(client))
    services_of(app).close()
    assert failed["status"] == "failed"
    assert not list((tmp_path / "audio").glob("*.wav"))


def test_a_real_model_generates_the_same_audio_on_every_endpoint(tmp_path: Path, demo_checkpoints: Path) -> None:
    config = Config(
        audio_dir=tmp_path / "audio",
        task_db=tmp_path / "tasks.sqlite3",
        state_db=tmp_path / "state.sqlite3",
        checkpoints_dir=demo_checkpoints,
        offline=True,
        device="cpu",
        precision="exact",
    )
    app = create_app(config)
    client = app.test_client()
    fields = {"model_size": "demo", "duration": 2, "seed": 7}
    task_id = submit(client, **fields)
    melody = {"prompt": "solo cello", "model_size": "demo", "duration": "1", "melody": (melody_file(), "melody.wav")}
    melody_id = client.post("/generate-with-melody-async", data=melody).json["task_id"]
    plain = client.post("/generate", json=REQUEST | fields).json
    waited = client.post("/generate", json=REQUEST | fields, headers={"Prefer": "wait=60"}).json
    wait_until(lambda: get_task(client, task_id)["state"] == "completed", 60)
    done = get_task(client, task_id)
    urls = [done["audio_url"], plain["audio_url"], waited["audio_url"]]
    audio = [client.get(url, buffered=True).get_data() for url in urls]
    assert audio[0] == audio[1] == audio[2]
    wait_until(lambda: get_task(client, melody_id)["state"] == "completed", 60)
    assert json.loads(json.dumps(get_task(client, melody_id)))["model"] == "demo-melody"
    services_of(app).close()
