"""Replicate's unmodified Python client makes music with this server, and so do clients of Cog."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import replicate
import soundfile
from flask.testing import FlaskClient
from replicate.exceptions import ModelError, ReplicateError
from werkzeug.test import TestResponse

from audiocraft_api.web.compat.predictions import INPUT
from audiocraft_api.web.services import services_of
from support.documents import section
from support.fakes import FakeEngine
from support.http import fake_app, melody_file
from support.keys import ENVIRONMENT_KEY, with_key
from support.receiver import Receiver
from support.served import Server, wait_until

VERSION = "671ac645ce5e552cc63a54a2bbff63fcf798043055d2dac5fc9e36a837eedcfb"
CELLO = {"prompt": "cello", "duration": 1, "model_version": "demo"}
MELODY = "data:audio/wav;base64," + base64.b64encode(melody_file().read()).decode()


@pytest.fixture(scope="module")
def connect(server: Server) -> Iterator[Callable[[str], replicate.Client]]:
    with httpx.HTTPTransport() as transport:
        yield lambda key: replicate.Client(api_token=key, base_url=server.url, transport=transport)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "melody.wav"
    path.write_bytes(melody_file().read())
    return path


@pytest.fixture(scope="module")
def cloud(connect: Callable[[str], replicate.Client]) -> replicate.Client:
    client = connect(ENVIRONMENT_KEY)
    client.poll_interval = 0.05
    return client


def seconds_of(audio: bytes) -> float:
    return float(soundfile.info(io.BytesIO(audio)).duration)


@pytest.mark.parametrize("reference", ["meta/musicgen", f"meta/musicgen:{VERSION}", "facebook/musicgen-small"])
@pytest.mark.parametrize("output_format", ["wav", "mp3"])
def test_run_returns_the_audio(cloud: replicate.Client, reference: str, output_format: str) -> None:
    output = cloud.run(reference, input={**CELLO, "output_format": output_format})
    assert seconds_of(output.read()) == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("hold")
def test_a_prediction_reports_progress_and_can_be_canceled(cloud: replicate.Client) -> None:
    prediction = cloud.models.predictions.create("meta/musicgen", input={**CELLO, "prompt": "hold after 5"})
    assert prediction.status == "starting"

    def progress() -> bool:
        prediction.reload()
        return prediction.progress is not None and prediction.progress.current == 25

    wait_until(progress)
    assert (prediction.status, prediction.progress.total, prediction.progress.percentage) == ("processing", 50, 0.5)
    prediction.cancel()
    prediction.wait()
    assert (prediction.status, prediction.output) == ("canceled", None)


def test_a_prediction_that_outlives_the_wait_is_polled(cloud: replicate.Client, hold: Path) -> None:
    body = {**CELLO, "prompt": "hold after 5"}
    prediction = cloud.predictions.create(version=VERSION, input=body, wait=1)
    assert prediction.status == "starting"
    hold.unlink()
    prediction.wait()
    assert prediction.status == "succeeded"
    assert prediction.output.startswith("data:audio/wav;base64,")
    assert prediction.metrics["predict_time"] > 0
    assert prediction.input["prompt"] == "hold after 5"


def test_a_failed_prediction_is_a_model_error(cloud: replicate.Client) -> None:
    with pytest.raises(ModelError, match="failed"):
        cloud.run("meta/musicgen", input={**CELLO, "prompt": "fail after 3"})


def test_a_file_is_uploaded_used_listed_and_deleted(
    cloud: replicate.Client, connect: Callable[[str], replicate.Client], spent_key: str, recording: Path
) -> None:
    file = cloud.files.create(recording, metadata={"take": 2})
    content = recording.read_bytes()
    assert (file.name, file.content_type, file.size) == ("melody.wav", "audio/x-wav", len(content))
    assert (file.metadata, file.checksums["sha256"]) == ({"take": 2}, hashlib.sha256(content).hexdigest())
    assert cloud.files.get(file.id).urls == file.urls
    assert [found.id for found in cloud.files.list()] == [file.id]
    downloaded = httpx.get(file.urls["download"], headers=with_key(ENVIRONMENT_KEY))
    assert (downloaded.content, downloaded.headers["Content-Type"]) == (content, "application/octet-stream")
    given = {**CELLO, "input_audio": file.urls["get"], "model_version": "demo-melody"}
    assert seconds_of(cloud.run("meta/musicgen", input=given).read()) == pytest.approx(1, abs=0.1)
    other = connect(spent_key)
    assert other.files.list() == []
    with pytest.raises(ReplicateError, match="does not exist"):
        other.files.get(file.id)
    with pytest.raises(ReplicateError):
        other.files.create(recording)
    assert cloud.files.delete(file.id)
    with pytest.raises(ReplicateError, match="does not exist"):
        cloud.run("meta/musicgen", input=given)


def test_run_uploads_a_file_of_its_input(cloud: replicate.Client, recording: Path) -> None:
    with recording.open("rb") as file:
        given = {**CELLO, "input_audio": file, "model_version": "demo-melody", "output_format": "mp3"}
        assert seconds_of(cloud.run("meta/musicgen", input=given).read()) == pytest.approx(1, abs=0.1)
    (uploaded,) = cloud.files.list()
    assert cloud.files.delete(uploaded.id)


def test_a_webhook_has_the_prediction(cloud: replicate.Client) -> None:
    with closing(Receiver()) as receiver:
        prediction = cloud.predictions.create(
            version=VERSION, input=CELLO, webhook=receiver.url, webhook_events_filter=["start", "completed"]
        )
        wait_until(lambda: receiver.received)
    (received,) = receiver.received
    received.verify()
    assert (received.data["id"], received.data["status"]) == (prediction.id, "succeeded")
    assert received.data["output"].startswith("data:")


def test_a_wrong_key_is_refused(connect: Callable[[str], replicate.Client]) -> None:
    with pytest.raises(ReplicateError, match="Invalid or missing API key") as raised:
        connect("wrong").run("meta/musicgen", input=CELLO)
    assert raised.value.status == 401


def test_a_limit_is_reported(connect: Callable[[str], replicate.Client], spent_key: str) -> None:
    with pytest.raises(ReplicateError) as raised:
        connect(spent_key).run("meta/musicgen", input=CELLO)
    assert (raised.value.status, raised.value.title) == (429, "Too Many Requests")


def test_a_refused_prompt_has_a_suggestion(cloud: replicate.Client) -> None:
    with pytest.raises(ReplicateError, match="findahelpline") as raised:
        cloud.run("meta/musicgen", input={"prompt": "kill yourself"})
    assert raised.value.status == 422


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"duration": 900}, "duration"),
        ({"classifier_free_guidance": "much"}, "classifier_free_guidance"),
        ({"multi_band_diffusion": True}, "multi_band_diffusion"),
        ({"model_version": "huge"}, "model_version"),
        ({"input_audio": "https://example.com/a.wav"}, "input_audio"),
        ({"input_audio": "data:audio/wav;base64,AAAA"}, "input_audio"),
        ({"continuation": True}, "input_audio"),
        ({"continuation": True, "input_audio": MELODY, "continuation_start": 5}, "continuation_start"),
    ],
)
def test_a_bad_field_is_named(server: Server, change: dict[str, Any], field: str) -> None:
    response = server.post("/v1/predictions", json={"input": CELLO | change}, headers=with_key(ENVIRONMENT_KEY))
    assert (response.status_code, response.json()["title"]) == (422, "Unprocessable Entity")
    assert [invalid["field"] for invalid in response.json()["invalid_fields"]] == [f"input.{field}"]


def test_cog_names_a_bad_field(client: FlaskClient) -> None:
    response = client.post("/predictions", json={"input": CELLO | {"duration": 900}})
    assert response.status_code == 422
    assert [invalid["loc"] for invalid in response.json["detail"]] == [["body", "input", "duration"]]


def test_a_file_that_is_no_recording_is_refused_in_plain_words(client: FlaskClient) -> None:
    text = "data:audio/wav;base64," + base64.b64encode(b"only text").decode()
    response = client.post("/predictions", json={"input": CELLO | {"input_audio": text}})
    assert response.json["detail"][0]["loc"] == ["body", "input", "input_audio"]
    assert response.json["detail"][0]["msg"] == "This file is text, not audio. Upload the recording itself."


def test_another_model_is_refused(cloud: replicate.Client) -> None:
    with pytest.raises(ReplicateError, match="must be meta/musicgen"):
        cloud.run("stability-ai/sdxl", input=CELLO)


def test_the_example_in_the_documentation_works(run_example: Callable[[str], None], tmp_path: Path) -> None:
    run_example("Replicate and Cog")
    assert soundfile.info(tmp_path / "beat.mp3").duration == pytest.approx(2, abs=0.1)


def test_the_documentation_names_every_field() -> None:
    text = section("docs/compatibility.md", "Replicate and Cog")
    names = {*INPUT.fields, *INPUT.accepted, "input_audio", "continuation", "continuation_start", "continuation_end"}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_a_recording_is_a_melody_or_is_continued(client: FlaskClient, engine: FakeEngine) -> None:
    given = {"prompt": "cello", "duration": 1, "input_audio": MELODY, "seed": -1}
    assert client.post("/predictions", json={"input": given}).json["status"] == "succeeded"
    continuation = {"continuation": True, "continuation_start": 0.5, "continuation_end": -1}
    assert client.post("/predictions", json={"input": given | continuation}).json["status"] == "succeeded"
    melody, continued = (request.params for request in engine.submitted)
    assert (melody.model, melody.melody is None, melody.duration_seconds) == ("melody", False, 1)
    assert (continued.model, continued.audio_prompt.waveform.shape) == ("small", (1, 8000))


def test_cog_runs_predictions_at_once_or_in_the_background(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"input": {"prompt": "cello", "top_k": 9, "classifier_free_guidance": 4}}
    done = client.post("/predictions", json=body)
    assert (done.status_code, done.json["status"]) == (200, "succeeded")
    params = engine.submitted[0].params
    assert (params.duration_seconds, params.top_k, params.cfg_coef) == (8, 9, 4)
    engine.open_gate.clear()
    running = client.post("/predictions", json=body, headers={"Prefer": "respond-async"})
    assert running.status_code == 202
    canceled = client.post(f"/predictions/{running.json['id']}/cancel")
    assert (canceled.status_code, canceled.json) == (200, {})
    assert client.post("/predictions/unknown/cancel").status_code == 404


def test_a_prediction_with_an_id_of_the_client_is_created_once(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"id": "mine-1", "input": {"prompt": "cello", "duration": 1}}
    engine.open_gate.clear()
    first = client.put("/predictions/mine-1", json=body, headers={"Prefer": "respond-async"})
    again = client.put("/predictions/mine-1", json=body, headers={"Prefer": "respond-async"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert (first.json["id"], again.json["id"]) == ("mine-1", "mine-1")
    assert len(client.get("/tasks").json["tasks"]) == 1
    other = client.put("/predictions/mine-1", json={"input": {"prompt": "flute"}})
    assert (other.status_code, other.json["code"]) == (422, "idempotency_conflict")
    assert client.post("/predictions/mine-1/cancel").status_code == 200
    for prediction_id in ("other", "a b", "x" * 201):
        assert client.put(f"/predictions/{prediction_id}", json=body).status_code == 422


def test_the_number_and_the_metadata_of_files_are_bounded(tmp_path: Path) -> None:
    client = fake_app(tmp_path, compat_max_files=1, max_upload_bytes=200_000).test_client()

    def upload(content: bytes = b"RIFF", **fields: Any) -> TestResponse:
        form = {"content": (io.BytesIO(content), "a.wav")} | fields
        return client.post("/v1/files", data=form, content_type="multipart/form-data")

    long = json.dumps({"a": "x" * 9000}), json.dumps({"a": "ä" * 3000}, ensure_ascii=False), f"[{'1e15,' * 999}1]"
    for metadata in ("[]", "{", "[" * 5000, '{"a": NaN}', '{"a": 1e999}', *long):
        assert upload(metadata=metadata).json["invalid_fields"][0]["field"] == "input.metadata"
    assert client.post("/v1/files", data={"content": "text"}).status_code == 422
    assert upload(b"x" * 300_000).status_code == 413
    # Some clients send the metadata as a file.
    assert upload(metadata=(io.BytesIO(b'{"a": 1}'), "blob")).json["metadata"] == {"a": 1}
    assert upload().status_code == 429
    (file,) = client.get("/v1/files").json["results"]
    assert client.delete(f"/v1/files/{file['id']}").status_code == 204
    assert client.delete(f"/v1/files/{file['id']}").status_code == 404
    assert upload().status_code == 201


def test_large_bodies_occupy_slots_and_their_recordings_leave_memory(tmp_path: Path) -> None:
    engine = FakeEngine()
    app = fake_app(tmp_path, engine, max_synchronous_requests=1)
    large = "data:audio/wav;base64," + base64.b64encode(melody_file().read() + b"\0" * 300_000).decode()
    body = {"input": {"prompt": "cello", "duration": 1, "input_audio": large}}
    done = app.test_client().post("/predictions", json=body)
    assert (done.status_code, done.json["status"]) == (200, "succeeded")
    assert engine.submitted[0].params.melody is not None
    with services_of(app).request_slots.acquire():
        full = app.test_client().post("/predictions", json=body, headers={"Prefer": "respond-async"})
    assert (full.status_code, full.json["code"]) == (503, "queue_full")
    body["input"]["input_audio"] = "data:audio/wav;base64," + "!" * 300_000
    assert app.test_client().post("/predictions", json=body).status_code == 422


def test_cog_reports_its_health(client: FlaskClient, engine: FakeEngine) -> None:
    assert client.get("/health-check").json["status"] == "READY"
    engine.is_alive = False
    assert client.get("/health-check").json["status"] == "DEFUNCT"


def test_a_setting_turns_the_family_off(tmp_path: Path) -> None:
    client = fake_app(tmp_path, compat_replicate=False).test_client()
    assert client.post("/v1/predictions", json={"input": CELLO}).status_code == 404
    assert client.get("/health-check").status_code == 404
