"""The controls of a generation over HTTP: limits, what reaches the engine, and recipes. The engine is a fake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api.core.constants import DEFAULT_EXTEND_STRIDE_SECONDS
from audiocraft_api.core.params import Segment
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.command import decode_command, encode_command, fingerprint
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate, melody_file

REFUSED = "sad piano, kill yourself, 90 bpm"


def finished_task(client: FlaskClient, **fields: Any) -> Any:
    """Submit a task and return it when it has ended."""
    response = client.post(
        "/generate-async", json=fields if "segments" in fields else {"prompt": "solo cello"} | fields
    )
    assert response.status_code == 202, response.json
    tasks = services_of(client.application).tasks.service
    task = tasks.get(response.json["task_id"])
    while not task.is_final:
        task = tasks.wait_for_change(task, 1.0)
    return client.get(f"/tasks/{task.id}").json


def downloaded(client: FlaskClient, url: str) -> bytes:
    with client.get(url) as response:
        return response.get_data()


# --- duration and extend_stride


def test_a_task_may_be_300_seconds_long(client: FlaskClient, engine: FakeEngine) -> None:
    task = finished_task(client, duration=300, extend_stride=12.5)
    assert task["result"]["duration"] == 300.0
    assert task["result"]["recipe"]["duration"] == 300.0
    assert task["result"]["recipe"]["extend_stride"] == 12.5
    params = engine.submitted[0].params
    assert (params.duration_seconds, params.extend_stride_seconds) == (300.0, 12.5)


def test_a_melody_task_may_be_long(client: FlaskClient) -> None:
    form = {"prompt": "solo cello", "duration": "300", "extend_stride": "20", "melody": (melody_file(), "m.wav")}
    assert client.post("/generate-with-melody-async", data=form).status_code == 202


def test_a_stream_may_be_long(client: FlaskClient, engine: FakeEngine) -> None:
    response = client.post("/generate-stream", json={"prompt": "solo cello", "duration": 61})
    assert response.headers["X-Audio-Duration"] == "61"
    assert len(response.get_data()) == 44 + 61 * 64_000
    assert engine.submitted[0].params.extend_stride_seconds == DEFAULT_EXTEND_STRIDE_SECONDS


def test_a_synchronous_request_has_at_most_30_seconds(client: FlaskClient) -> None:
    assert_error(generate(client, duration=30.5), 400, "invalid_request", "duration")
    form = {"prompt": "solo cello", "duration": "31", "melody": (melody_file(), "m.wav")}
    assert_error(client.post("/generate-with-melody", data=form), 400, "invalid_request", "duration")


@pytest.mark.parametrize("route", ["/generate-async", "/generate-stream"])
@pytest.mark.parametrize(("field", "value"), [("duration", 300.5), ("extend_stride", 30), ("extend_stride", 0.5)])
def test_controls_out_of_range_are_refused(client: FlaskClient, route: str, field: str, value: float) -> None:
    response = client.post(route, json={"prompt": "solo cello", field: value})
    assert_error(response, 400, "invalid_request", field)


def test_the_settings_limit_the_duration_of_tasks(tmp_path: Path) -> None:
    client = fake_app(tmp_path, max_duration_seconds=60).test_client()
    assert client.post("/generate-async", json={"prompt": "a", "duration": 60}).status_code == 202
    response = client.post("/generate-async", json={"prompt": "a", "duration": 61})
    assert "at most 60" in assert_error(response, 400, "invalid_request", "duration")["error"]
    small = client.get("/models").json["models"][0]
    assert small["controls"]["duration"] == {"minimum": 1.0, "maximum": 60.0, "synchronous_maximum": 30.0}


def test_a_stride_must_be_shorter_than_the_window_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text('{"short": {"checkpoint": "org/short", "window_seconds": 10}}')
    client = fake_app(tmp_path, models_file=tmp_path / "models.json").test_client()
    long = {"prompt": "a", "model_size": "short", "duration": 11}
    response = client.post("/generate-async", json=long | {"extend_stride": 18})
    assert "less than 10" in assert_error(response, 400, "invalid_request", "extend_stride")["error"]
    assert client.post("/generate-async", json=long | {"extend_stride": 18, "duration": 10}).status_code == 202
    assert client.post("/generate-async", json=long).status_code == 202


def test_long_audio_counts_with_its_duration_toward_the_daily_quota(tmp_path: Path) -> None:
    client = fake_app(tmp_path, audio_seconds_per_day=350).test_client()
    assert client.post("/generate-async", json={"prompt": "a", "duration": 300}).status_code == 202
    response = client.post("/generate-async", json={"prompt": "a", "duration": 51})
    assert "50 seconds left" in assert_error(response, 429, "quota_exceeded")["error"]


def test_limits_of_time_follow_the_duration() -> None:
    assert GenerateCommand("a", "small", 5.0).time_factor == 1.0
    assert GenerateCommand("a", "small", 30.0).time_factor == 1.0
    assert GenerateCommand("a", "small", 300.0).time_factor == 10.0


# --- negative_prompt


def test_a_negative_prompt_reaches_the_engine(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"prompt": "solo cello", "negative_prompt": "drums", "duration": 1}
    for route in ("/generate", "/generate-stream"):
        assert client.post(route, json=body).get_data()
    assert finished_task(client, **body)["status"] == "completed"
    assert [request.params.negative_description for request in engine.submitted] == ["drums"] * 3


def test_a_negative_prompt_is_in_the_recipe_and_the_tags(client: FlaskClient) -> None:
    body = generate(client, negative_prompt="drums").json
    assert body["recipe"]["negative_prompt"] == "drums"
    assert b'"negative_prompt":"drums"' in downloaded(client, body["audio_url"])
    again = {"prompt": body["recipe"]["prompt"], "negative_prompt": body["recipe"]["negative_prompt"]}
    assert generate(client, **again).json["recipe"]["negative_prompt"] == "drums"


def test_tags_without_prompts_have_no_negative_prompt(tmp_path: Path) -> None:
    client = fake_app(tmp_path, tag_prompts=False).test_client()
    body = generate(client, negative_prompt="xylophone").json
    assert b"xylophone" not in downloaded(client, body["audio_url"])


def test_a_melody_form_takes_a_negative_prompt(client: FlaskClient, engine: FakeEngine) -> None:
    form = {"prompt": "solo cello", "negative_prompt": "drum_kit, 1_0", "melody": (melody_file(), "m.wav")}
    assert client.post("/generate-with-melody", data=form).status_code == 200
    assert engine.submitted[0].params.negative_description == "drum_kit, 1_0"


@pytest.mark.parametrize(
    "fields",
    [
        {"negative_prompt": "drums", "cfg_coef": 1},
        {"negative_prompt": " "},
        {"negative_prompt": ""},
        {"negative_prompt": "a" * 2001},
        {"negative_prompt": ["drums"]},
    ],
)
def test_a_negative_prompt_that_cannot_be_honored_is_refused(client: FlaskClient, fields: dict[str, Any]) -> None:
    assert_error(generate(client, **fields), 400, "invalid_request", "negative_prompt")


def test_a_negative_prompt_passes_the_prompt_policy(tmp_path: Path) -> None:
    client = fake_app(tmp_path).test_client()
    response = generate(client, negative_prompt=REFUSED)
    assert_error(response, 422, "prompt_refused", details=("category", "suggestion"))


def test_a_negative_prompt_belongs_to_the_key_of_the_result_cache(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine=engine, result_cache_entries=10).test_client()
    cached = [generate(client, seed=1, **fields).json["cached"] for fields in ({}, {"negative_prompt": "drums"}) * 2]
    assert cached == [False, False, True, True]


# --- segments

SEGMENTS = [
    {"prompt": "solo cello", "duration": 0.5},
    {"prompt": "rock band", "duration": 1, "negative_prompt": "drums"},
]


def test_segments_reach_the_engine_on_every_endpoint(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"segments": SEGMENTS, "negative_prompt": "vocals"}
    for route in ("/generate", "/generate-stream"):
        assert client.post(route, json=body).get_data()
    assert finished_task(client, **body)["status"] == "completed"
    for request in engine.submitted:
        assert request.params.segments == (Segment("solo cello", 0.5, "vocals"), Segment("rock band", 1.0, "drums"))
        assert request.params.duration_seconds == 1.5
    assert len(engine.submitted) == 3


def test_segments_are_in_the_recipe_and_can_be_sent_back(client: FlaskClient, engine: FakeEngine) -> None:
    body = client.post("/generate", json={"segments": SEGMENTS, "seed": 3}).json
    recipe = body["recipe"]
    assert recipe["segments"] == SEGMENTS
    assert (recipe["prompt"], recipe["duration"]) == ("solo cello", 1.5)
    assert b"rock band" in downloaded(client, body["audio_url"])
    client.post("/generate", json={"segments": recipe["segments"], "seed": recipe["seed"]})
    assert engine.submitted[0].params.segments == engine.submitted[1].params.segments


def test_tags_without_prompts_have_no_segments(tmp_path: Path) -> None:
    client = fake_app(tmp_path, tag_prompts=False).test_client()
    body = client.post("/generate", json={"segments": SEGMENTS}).json
    assert b"rock band" not in downloaded(client, body["audio_url"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"segments": SEGMENTS, "prompt": "a"}, "prompt"),
        ({"segments": SEGMENTS, "duration": 2}, "duration"),
        ({}, "prompt"),
        ({"segments": None}, "segments"),
        ({"segments": SEGMENTS, "prompt": None}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"segments": []}, "segments"),
        ({"segments": [SEGMENTS[1]] * 33}, "segments"),
        ({"segments": [SEGMENTS[0]]}, "segments"),
        ({"segments": [{"prompt": "a", "duration": 31}]}, "segments"),
        ({"segments": [{"prompt": "a", "duration": 0.05}]}, "segments"),
        ({"segments": [{"prompt": " ", "duration": 2}]}, "segments"),
        ({"segments": [{"prompt": "a"}]}, "segments"),
        ({"segments": [{"prompt": "a", "duration": 2, "seed": 1}]}, "segments"),
        ({"segments": "a"}, "segments"),
        ({"segments": SEGMENTS, "cfg_coef": 1}, "segments"),
    ],
)
def test_segments_that_do_not_fit_are_refused(client: FlaskClient, fields: dict[str, Any], named: str) -> None:
    assert_error(client.post("/generate", json=fields), 400, "invalid_request", named)


def test_the_error_names_the_segment_and_its_field(client: FlaskClient) -> None:
    fields = {"segments": [SEGMENTS[1], {"prompt": "a" * 2001, "duration": 2}]}
    assert "segments[1].prompt must" in client.post("/generate", json=fields).json["error"]


def test_every_prompt_of_the_segments_passes_the_policy(client: FlaskClient) -> None:
    for field in ("prompt", "negative_prompt"):
        body = {"segments": [SEGMENTS[1], SEGMENTS[1] | {field: REFUSED}]}
        assert_error(client.post("/generate", json=body), 422, "prompt_refused", details=("category", "suggestion"))


def test_a_melody_form_has_no_segments(client: FlaskClient) -> None:
    form = {"prompt": "a", "segments": json.dumps(SEGMENTS), "melody": (melody_file(), "m.wav")}
    assert_error(client.post("/generate-with-melody", data=form), 400, "invalid_request", "segments")


def test_a_segment_that_a_model_with_a_prefix_would_never_play_is_refused(client: FlaskClient) -> None:
    assert client.get("/models").json["models"][3]["controls"]["segments"]["changes_at"] == "window"
    body = {"model_size": "melody", "segments": [SEGMENTS[1], SEGMENTS[1]]}
    error = assert_error(client.post("/generate-async", json=body), 400, "invalid_request", "segments")["error"]
    assert "segments[1] would never be played" in error
    assert "at 0 seconds only" in error
    assert "small, medium, large" in error
    long = [{"prompt": "a", "duration": 30}, {"prompt": "b", "duration": 18}, {"prompt": "c", "duration": 1}]
    assert client.post("/generate-async", json=body | {"segments": long}).status_code == 202


def test_segments_belong_to_the_key_of_the_result_cache(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine=engine, result_cache_entries=10).test_client()
    first = {"segments": SEGMENTS, "seed": 1}
    second = {"segments": [SEGMENTS[0], SEGMENTS[1] | {"duration": 1.1}], "seed": 1}
    cached = [client.post("/generate", json=body).json["cached"] for body in (first, second) * 2]
    assert cached == [False, False, True, True]


# --- what is stored


def test_recipes_and_tasks_of_plain_requests_do_not_mention_controls(client: FlaskClient) -> None:
    command = GenerateCommand("solo cello", "small", 5.0, seed=1)
    plain, _ = encode_command(command)
    assert set(plain) == {
        *("prompt", "model", "duration_seconds", "output_format", "temperature", "top_k", "top_p", "cfg_coef", "seed"),
        *("melody", "audio_owner", "seed_drawn"),
    }
    stream = services_of(client.application).generation.stream(command)
    for _ in stream.pieces():
        pass
    assert "extend_stride" not in (stream.recipe().details or {})
    stream.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"extend_stride_seconds": 20.0},
        {"negative_prompt": "drums"},
        {"segments": (Segment("a", 20.0), Segment("b", 40.0, "c"))},
    ],
)
def test_controls_are_stored_with_a_task_and_belong_to_its_fingerprint(changes: dict[str, Any]) -> None:
    plain, audio = encode_command(GenerateCommand("a", "small", 60.0, seed=1, **changes))
    stored = json.loads(json.dumps(plain))
    decoded = decode_command(stored, audio)
    for name, value in changes.items():
        assert getattr(decoded, name) == value
    without, _ = encode_command(GenerateCommand("a", "small", 60.0, seed=1))
    assert fingerprint(plain, None, None) != fingerprint(without, None, None)
    assert decode_command(without, None).extend_stride_seconds == DEFAULT_EXTEND_STRIDE_SECONDS
