"""Tempo, key and time signature over HTTP: what the engine reads, and what the recipe shows. The engine is a fake."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api.core.params import GenerationParams
from audiocraft_api.generation.wording import with_wording, worded, wording
from support.fakes import FakeEngine
from support.http import assert_error, generate, melody_file
from support.tasks import submit, wait_for

WISHES = {"bpm": 120, "key": "F# minor", "time_signature": "3/4"}
WORDS = "bpm: 120. key: F# minor. time signature: 3/4"


def test_the_engine_reads_the_words_and_the_recipe_keeps_the_prompt(client: FlaskClient, engine: FakeEngine) -> None:
    body = generate(client, **WISHES).json
    assert engine.submitted[0].params.description == f"solo cello. {WORDS}"
    assert body["recipe"]["prompt"] == "solo cello"
    assert body["recipe"]["wording"] == WORDS
    assert {name: body["recipe"][name] for name in WISHES} == WISHES
    again = {name: body["recipe"][name] for name in ("prompt", "seed", "duration", *WISHES)}
    assert generate(client, **again).status_code == 200
    assert engine.submitted[1].params.description == engine.submitted[0].params.description


def test_without_wishes_the_prompt_stays_as_it_is(client: FlaskClient, engine: FakeEngine) -> None:
    body = generate(client, prompt="solo cello.", bpm=None).json
    assert engine.submitted[0].params.description == "solo cello."
    assert not {*WISHES, "wording"} & body["recipe"].keys()


def test_each_segment_gets_the_words_and_no_negative_prompt_does(client: FlaskClient, engine: FakeEngine) -> None:
    segments: list[dict[str, Any]] = [{"prompt": "piano", "duration": 1}, {"prompt": "choir", "duration": 1}]
    body = {"segments": segments, "negative_prompt": "drums", "bpm": 90}
    recipe = wait_for(client, client.post("/generate-async", json=body).json["task_id"])["result"]["recipe"]
    found = engine.submitted[0].params.segments
    assert [part.description for part in found] == ["piano. bpm: 90", "choir. bpm: 90"]
    assert {part.negative_description for part in found} == {"drums"}
    assert recipe["segments"] == [{**segment, "negative_prompt": "drums"} for segment in segments]


def test_all_endpoints_have_the_controls(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"prompt": "solo cello", "duration": 1, "key": "Bb major"}
    assert client.post("/generate-stream", json=body).get_data()
    wait_for(client, submit(client, **body))
    client.post("/generate-with-melody", data=body | {"melody": (melody_file(), "m.wav")})
    client.post("/generate-continuation", data=body | {"audio": (melody_file(), "a.wav")})
    assert [request.params.description for request in engine.submitted] == ["solo cello. key: Bb major"] * 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("bpm", value) for value in (39, 241, 99.5, "120", True)),
        *(("key", value) for value in ("H minor", "C", "c major", "C dorian", "C major\n", "F## minor", 7)),
        *(("time_signature", value) for value in ("5/4", "4", 4)),
    ],
)
def test_other_values_are_refused(client: FlaskClient, engine: FakeEngine, field: str, value: object) -> None:
    assert_error(generate(client, **{field: value}), 400, "invalid_request", field)
    assert engine.submitted == []


def test_a_performance_has_its_own_words(client: FlaskClient) -> None:
    performance = {"frames": 50, "changes": [{"frame": 0, "prompts": [{"text": "cello"}]}], "model": "small", "seed": 1}
    response = client.post("/generate", json={"performance": performance, "bpm": 120})
    assert_error(response, 400, "invalid_request", "bpm")


def test_the_models_list_the_limits(client: FlaskClient) -> None:
    controls = client.get("/models").json["models"][0]["controls"]
    assert controls["bpm"] == {"minimum": 40, "maximum": 240}
    assert controls["time_signature"] == {"values": ["4/4", "3/4", "6/8"]}
    assert controls["key"]["pattern"].startswith("^[A-G]")


def test_words_follow_a_text_as_in_the_captions_of_audiocraft() -> None:
    assert wording({"key": "C major", "bpm": 92, "time_signature": None}) == "bpm: 92. key: C major"
    assert worded("Rock guitar.", "bpm: 92") == "Rock guitar. bpm: 92"
    assert worded("Rock guitar.", "") == "Rock guitar."
    params = GenerationParams("small", "a", 1.0, 0)
    assert with_wording(params, "") is params
