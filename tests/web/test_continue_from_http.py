"""Continuing audio that the server made, named by its task or its link. The engine is a fake."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.core.params import Codes
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate
from support.keys import create_key, with_key
from support.tasks import submit, wait_for

DIGEST = re.compile(r"[0-9a-f]{64}")
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


# --- stored codes


def codes_of(request: EngineRequest) -> Any:
    """Return the tokens of a result."""
    codes = request.result(10).codes
    assert codes is not None
    return codes.tokens


def given_codes(request: EngineRequest) -> Codes | None:
    """Return the codes of the audio that a request continues."""
    assert request.params.audio_prompt is not None
    return request.params.audio_prompt.codes


def codes_file(tmp_path: Path, body: Any) -> Path:
    return tmp_path / "audio" / (body["audio_url"].removeprefix("/audio/") + ".codes")


@pytest.mark.parametrize("output_format", ["wav", "mp3", "m4a", "opus", "ogg"])
def test_a_continuation_has_the_tokens_of_the_result_before(
    client: FlaskClient, engine: FakeEngine, output_format: str
) -> None:
    first = generate(client, duration=2, output_format=output_format).json
    recipe = generate(client, continue_from={"audio_url": first["audio_url"]}).json["recipe"]
    given = given_codes(engine.submitted[1])
    assert given is not None
    np.testing.assert_array_equal(given.tokens, codes_of(engine.submitted[0]))
    assert DIGEST.fullmatch(recipe["codes"])
    assert (recipe["continue_from"]["start"], recipe["continue_from"]["end"]) == (0.0, 2.0)
    assert engine.submitted[1].params.duration_seconds == 3.0


def test_each_link_of_a_chain_has_all_tokens_before_it(client: FlaskClient, engine: FakeEngine) -> None:
    body = generate(client, duration=1, seed=1).json
    for seed in range(2, 5):
        body = generate(client, seed=seed, continue_from={"audio_url": body["audio_url"]}).json
        before, codes = codes_of(engine.submitted[-2]), codes_of(engine.submitted[-1])
        np.testing.assert_array_equal(codes[:, : before.shape[1]], before)
    assert codes.shape == (4, 200)


def test_start_and_end_are_rounded_to_frames_of_the_codes(client: FlaskClient, engine: FakeEngine) -> None:
    first = generate(client, duration=2).json
    reference = {"audio_url": first["audio_url"], "start": 0.505, "end": 1.512}
    recipe = generate(client, continue_from=reference).json["recipe"]
    given = given_codes(engine.submitted[1])
    assert given is not None
    np.testing.assert_array_equal(given.tokens, codes_of(engine.submitted[0])[:, 26:76])
    assert (recipe["continue_from"]["start"], recipe["continue_from"]["end"]) == (0.52, 1.52)
    again = generate(client, continue_from=recipe["continue_from"]).json["recipe"]
    assert (again["codes"], again["audio"]) == (recipe["codes"], recipe["audio"])


def test_without_its_input_a_continuation_keeps_only_the_new_codes(client: FlaskClient, engine: FakeEngine) -> None:
    first = generate(client, duration=2).json
    second = generate(client, continue_from={"audio_url": first["audio_url"], "include_input": False}).json
    generate(client, continue_from={"audio_url": second["audio_url"]})
    given = given_codes(engine.submitted[2])
    assert given is not None
    np.testing.assert_array_equal(given.tokens, codes_of(engine.submitted[1])[:, 100:])


def test_tasks_and_variations_have_codes_of_their_own(client: FlaskClient, engine: FakeEngine) -> None:
    task_id = submit(client, duration=1, n=2, seed=5)
    variations = wait_for(client, task_id)["result"]["variations"]
    by_seed = {request.params.seed: codes_of(request) for request in engine.submitted}
    for variation in variations:
        continued = submit(client, continue_from={"audio_url": variation["audio_url"]})
        assert wait_for(client, continued)["result"]["recipe"]["codes"]
        given = given_codes(engine.submitted[-1])
        assert given is not None
        np.testing.assert_array_equal(given.tokens, by_seed[variation["seed"]])


def test_a_cached_result_has_its_codes_too(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine=engine, result_cache_entries=10).test_client()
    generate(client, seed=1)
    cached = generate(client, seed=1).json
    assert cached["cached"]
    recipe = generate(client, continue_from={"audio_url": cached["audio_url"]}, seed=2).json["recipe"]
    given = given_codes(engine.submitted[1])
    assert given is not None
    np.testing.assert_array_equal(given.tokens, codes_of(engine.submitted[0]))

    codes_file(tmp_path, cached).unlink()
    without = generate(client, continue_from={"audio_url": cached["audio_url"]}, seed=2).json
    assert (without["cached"], "codes" in without["recipe"]) == (False, False)
    assert without["recipe"]["audio"] == recipe["audio"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "doubled"])
def test_without_usable_codes_the_file_is_encoded(
    tmp_path: Path, client: FlaskClient, engine: FakeEngine, damage: str
) -> None:
    first = generate(client, duration=2).json
    path = codes_file(tmp_path, first)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-3], "doubled": data * 2}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    body = generate(client, continue_from={"audio_url": first["audio_url"]}).json
    assert body["duration"] == 3.0
    assert given_codes(engine.submitted[1]) is None
    assert "codes" not in body["recipe"]


def test_codes_of_another_codec_are_not_in_the_recipe(client: FlaskClient, engine: FakeEngine) -> None:
    first = generate(client, duration=2).json
    engine.codec = "07e4"
    body = generate(client, continue_from={"audio_url": first["audio_url"]}).json
    assert body["duration"] == 3.0
    assert "codes" not in body["recipe"]


def test_a_server_may_store_no_codes(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine=engine, store_codes=False).test_client()
    first = generate(client, duration=2).json
    assert not codes_file(tmp_path, first).exists()
    assert generate(client, continue_from={"audio_url": first["audio_url"]}).json["duration"] == 3.0


def test_codes_are_deleted_with_their_task(tmp_path: Path, client: FlaskClient) -> None:
    task_id = submit(client)
    path = codes_file(tmp_path, wait_for(client, task_id))
    assert path.exists()
    services_of(client.application).store.delete(path.name.removesuffix(".codes"))
    assert list((tmp_path / "audio").iterdir()) == []


def test_codes_are_no_audio_file(tmp_path: Path, client: FlaskClient) -> None:
    first = generate(client).json
    assert codes_file(tmp_path, first).exists()
    url = first["audio_url"]
    for name in (f"{url}.codes", url.replace(".wav", ".codes")):
        assert_error(client.get(name), 404, "not_found")
        assert generate(client, continue_from={"audio_url": name}).status_code in (400, 404)
