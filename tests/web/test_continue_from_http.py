"""Continuing audio that the server made, named by its task or its link. The engine is a fake."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate
from support.keys import create_key, with_key
from support.tasks import submit, wait_for

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def samples_of(client: FlaskClient, body: Any) -> Any:
    with client.get(body["audio_url"]) as response:
        return soundfile.read(io.BytesIO(response.get_data()))[0]


def test_a_result_is_continued_by_its_link(client: FlaskClient, engine: FakeEngine) -> None:
    first = generate(client, duration=2).json
    body = generate(client, continue_from={"audio_url": first["audio_url"], "start": 0.5}).json
    params = engine.submitted[1].params
    assert params.audio_prompt is not None
    np.testing.assert_array_equal(params.audio_prompt.waveform[0], samples_of(client, first)[16_000:].astype("f4"))
    assert params.duration_seconds == 2.5
    assert body["duration"] == 2.5
    assert body["recipe"]["continue_from"] == {
        "audio_url": first["audio_url"],
        "start": 0.5,
        "end": 2.0,
        "include_input": True,
    }
    assert len(body["recipe"]["audio"]) == 64


def test_a_recipe_sent_back_continues_the_same_audio(client: FlaskClient) -> None:
    first = generate(client, duration=2).json
    recipe = generate(client, continue_from={"audio_url": first["audio_url"]}, seed=3).json["recipe"]
    again = generate(client, continue_from=recipe["continue_from"], seed=3).json["recipe"]
    assert again | {"created": ""} == recipe | {"created": ""}


def test_a_task_is_continued_and_continues(client: FlaskClient, engine: FakeEngine) -> None:
    first = submit(client, duration=2)
    wait_for(client, first)
    second = wait_for(client, submit(client, continue_from={"task_id": first, "include_input": False}))
    assert second["result"]["duration"] == 1.0
    assert engine.submitted[1].params.duration_seconds == 3.0


def test_a_stream_leaves_out_the_input_on_request(client: FlaskClient) -> None:
    first = generate(client, duration=2).json
    fields = {"prompt": "a", "duration": 1, "seed": 1, "continue_from": {"audio_url": first["audio_url"]}}
    whole = client.post("/generate-stream", json=fields)
    assert (whole.headers["X-Audio-Duration"], len(whole.get_data())) == ("3", 44 + 3 * 64_000)
    fields["continue_from"] = {"audio_url": first["audio_url"], "include_input": False}
    new = client.post("/generate-stream", json=fields)
    assert (new.headers["X-Audio-Duration"], len(new.get_data())) == ("1", 44 + 64_000)
    assert whole.get_data()[-64_000:] == new.get_data()[44:]


def test_segments_begin_after_the_input(client: FlaskClient, engine: FakeEngine) -> None:
    first = generate(client, duration=2).json
    segments = [{"prompt": "a", "duration": 1}, {"prompt": "b", "duration": 2}]
    body = {"segments": segments, "continue_from": {"audio_url": first["audio_url"]}}
    recipe = client.post("/generate", json=body).json["recipe"]
    assert [segment.duration_seconds for segment in engine.submitted[1].params.segments] == [3.0, 2.0]
    assert (recipe["segments"], recipe["duration"]) == (segments, 3.0)


def test_windows_of_a_melody_model_begin_earlier_by_the_input(client: FlaskClient) -> None:
    first = generate(client, duration=20).json
    segments = [{"prompt": "a", "duration": 10}, {"prompt": "b", "duration": 5}]
    body = {"model_size": "melody", "segments": segments}
    assert_error(client.post("/generate", json=body), 400, "invalid_request", "segments")
    body["continue_from"] = {"audio_url": first["audio_url"], "start": 0}
    assert client.post("/generate", json=body).status_code == 200


@pytest.mark.parametrize(
    ("reference", "status"),
    [
        ({"audio_url": f"/audio/{UNKNOWN}.wav"}, 404),
        ({"task_id": UNKNOWN}, 404),
        ({"task_id": "a/../b"}, 404),
        ({"audio_url": "/etc/passwd"}, 400),
        ({"audio_url": f"/audio/../{UNKNOWN}.wav"}, 400),
        ({"audio_url": f"http://a.example/audio/{UNKNOWN}.wav"}, 400),
        ({"audio_url": f"/audio/{UNKNOWN}.wav", "task_id": UNKNOWN}, 400),
        ({"audio_url": None}, 400),
        ({}, 400),
        ({"task_id": UNKNOWN, "start": 3, "end": 2}, 400),
        ({"task_id": UNKNOWN, "start": -1}, 400),
        ("a", 400),
        (None, 400),
    ],
)
def test_what_cannot_be_continued_is_refused(client: FlaskClient, reference: Any, status: int) -> None:
    response = generate(client, continue_from=reference)
    if status == 404:
        assert_error(response, 404, "not_found")
    else:
        assert_error(response, 400, "invalid_request", "continue_from")


def test_an_unfinished_task_is_refused(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    response = generate(client, continue_from={"task_id": submit(client)})
    assert "Name a completed task" in assert_error(response, 400, "invalid_request", "continue_from")["error"]
    engine.open_gate.set()


def test_deleted_audio_is_an_error_that_says_so(client: FlaskClient) -> None:
    task_id = submit(client)
    url = wait_for(client, task_id)["audio_url"]
    services_of(client.application).store.delete(url.removeprefix("/audio/"))
    assert_error(generate(client, continue_from={"task_id": task_id}), 410, "audio_gone")
    assert_error(generate(client, continue_from={"audio_url": url}), 404, "not_found")


def test_only_the_owner_continues_audio(tmp_path: Path) -> None:
    app = fake_app(tmp_path)
    mine, other = with_key(create_key(app)), with_key(create_key(app))
    client = app.test_client()
    task_id = submit(client, headers=mine)
    url = client.post("/generate", json={"prompt": "a", "duration": 1}, headers=mine).json["audio_url"]
    for reference in ({"audio_url": url}, {"task_id": task_id}):
        body = {"prompt": "a", "duration": 1, "continue_from": reference}
        assert_error(client.post("/generate", json=body, headers=other), 404, "not_found")
    body = {"prompt": "a", "duration": 1, "continue_from": {"audio_url": url}}
    assert client.post("/generate", json=body, headers=mine).status_code == 200


def test_audio_of_five_minutes_is_continued(client: FlaskClient) -> None:
    task_id = submit(client, duration=300)
    wait_for(client, task_id)
    recipe = generate(client, continue_from={"task_id": task_id}).json["recipe"]
    assert (recipe["continue_from"]["start"], recipe["continue_from"]["end"]) == (271.0, 300.0)
