"""Melodies of notes over HTTP: text and MIDI files, on every route that takes a melody. The engine is a fake."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from audiocraft_api.core.melody_line import REST, LineNote, MelodyLine
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, melody_file
from support.melodies import midi_file
from support.tasks import wait_for

NOTES = "C4:1 E4:1 G4:2 -:1"
LINE = MelodyLine((LineNote(500, 60), LineNote(1000, 64), LineNote(2000, 67), LineNote(2500, REST)))
MIDI = midi_file([(60, 1), (64, 1), (67, 2), (None, 1)])


def follow(client: FlaskClient, path: str = "/generate-with-melody", **fields: Any) -> TestResponse:
    return client.post(path, data={"prompt": "solo cello", "duration": "1"} | fields)


def upload(data: bytes, name: str = "melody.wav") -> tuple[io.BytesIO, str]:
    return io.BytesIO(data), name


def test_notes_reach_the_engine_and_the_recipe_repeats_them(client: FlaskClient, engine: FakeEngine) -> None:
    body = follow(client, notes=NOTES, bpm="90").json
    params = engine.submitted[0].params
    assert isinstance(params.melody, MelodyLine)
    assert [note.pitch for note in params.melody.notes] == [60, 64, 67, REST]
    assert params.melody.seconds == 3.333
    recipe = body["recipe"]
    assert (recipe["notes"], recipe["bpm"], recipe["melody"], body["model"]) == (NOTES, 90, None, "melody")
    again = {name: recipe[name] for name in ("prompt", "notes", "bpm", "seed", "duration")}
    assert follow(client, **again).json["recipe"] == recipe | {
        "created": follow(client, **again).json["recipe"]["created"]
    }
    assert engine.submitted[1].params.melody == params.melody


def test_bpm_is_the_tempo_of_the_notes_and_of_the_prompt_and_120_when_omitted(
    client: FlaskClient, engine: FakeEngine
) -> None:
    omitted, given = follow(client, notes=NOTES), follow(client, notes=NOTES, bpm="120")
    first, second = (request.params for request in engine.submitted)
    assert first.melody == second.melody == LINE
    assert first.description == second.description == "solo cello. bpm: 120"
    assert omitted.json["recipe"]["bpm"] == given.json["recipe"]["bpm"] == 120


def test_a_midi_file_is_known_by_its_content_and_has_its_own_tempo(client: FlaskClient, engine: FakeEngine) -> None:
    bodies = [follow(client, melody=upload(MIDI), **fields).json for fields in ({}, {"bpm": "90"})]
    assert [request.params.melody for request in engine.submitted] == [LINE, LINE]
    assert [request.params.description for request in engine.submitted] == ["solo cello", "solo cello. bpm: 90"]
    assert len({body["recipe"]["melody"] for body in bodies}) == 1
    assert len(bodies[0]["recipe"]["melody"]) == 64
    assert "notes" not in bodies[0]["recipe"]
    wrong_name = follow(client, melody=(melody_file(), "melody.mid"))
    assert wrong_name.status_code == 200, wrong_name.json


def test_the_recipe_is_in_the_tags(client: FlaskClient) -> None:
    body = follow(client, notes=NOTES, return_type="base64").json
    assert b'"notes":"C4:1 E4:1 G4:2 -:1"' in base64.b64decode(body["audio"])


def test_every_route_that_takes_a_melody_takes_notes(client: FlaskClient, engine: FakeEngine) -> None:
    def melody(kind: str) -> dict[str, Any]:
        return {"notes": NOTES} if kind == "notes" else {"melody": upload(MIDI)}

    def recording() -> dict[str, Any]:
        return {"audio": (melody_file(), "a.wav"), "model_size": "melody"}

    for kind in ("notes", "a file"):
        wait_for(client, follow(client, "/generate-with-melody-async", **melody(kind)).json["task_id"])
        continued = follow(client, "/generate-continuation", **recording(), **melody(kind))
        assert continued.status_code == 200, continued.json
        task = follow(client, "/generate-continuation-async", **recording(), **melody(kind))
        wait_for(client, task.json["task_id"])
    assert [request.params.melody for request in engine.submitted] == [LINE] * 6
    assert [request.params.audio_prompt is None for request in engine.submitted] == [True, False, False] * 2


def test_a_task_has_the_same_recipe_as_a_response(client: FlaskClient) -> None:
    task = wait_for(client, follow(client, "/generate-with-melody-async", notes=NOTES, bpm="90").json["task_id"])
    recipe = task["result"]["recipe"]
    assert (recipe["notes"], recipe["bpm"], recipe["wording"], recipe["melody"]) == (NOTES, 90, "bpm: 90", None)


def test_equal_notes_are_cached_and_others_are_not(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine, result_cache_entries=10).test_client()
    requests: list[dict[str, Any]] = [
        {"notes": NOTES},
        {"notes": NOTES, "bpm": "120"},  # what was omitted
        {"notes": NOTES, "bpm": "121"},
        {"notes": NOTES.replace("E4", "Eb4")},
        {"melody": upload(MIDI)},
        {"melody": upload(MIDI)},
        {"melody": upload(midi_file([(60, 1), (63, 1), (67, 2), (None, 1)]))},
    ]
    cached = [follow(client, seed="7", **fields).json["cached"] for fields in requests]
    assert cached == [False, True, False, False, False, True, False]


def test_an_idempotency_key_stands_for_the_notes(client: FlaskClient) -> None:
    def submit(**fields: Any) -> TestResponse:
        form = {"prompt": "solo cello", "duration": "1"} | fields
        return client.post("/generate-with-melody-async", data=form, headers={"Idempotency-Key": "once"})

    first = submit(melody=upload(MIDI))
    assert submit(melody=upload(MIDI)).json["task_id"] == first.json["task_id"]
    assert_error(submit(melody=upload(midi_file([(60, 2)]))), 422, "idempotency_conflict")
    assert_error(submit(notes=NOTES), 422, "idempotency_conflict")


def test_variations_follow_the_same_notes(client: FlaskClient, engine: FakeEngine) -> None:
    assert len(follow(client, notes=NOTES, n="3").json["variations"]) == 3
    assert [request.params.melody for request in engine.submitted] == [LINE] * 3


@pytest.mark.parametrize("path", ["/generate-with-melody", "/generate-with-melody-async"])
def test_a_file_or_notes_are_needed_but_not_both(client: FlaskClient, engine: FakeEngine, path: str) -> None:
    both = follow(client, path, notes=NOTES, melody=upload(MIDI))
    assert "cannot be combined with melody" in assert_error(both, 400, "invalid_request", "notes")["error"]
    neither = follow(client, path)
    assert assert_error(neither, 400, "invalid_request", "melody")["error"] == "No melody file provided"
    empty = follow(client, path, notes="", melody=(io.BytesIO(), ""))
    assert "at least one note" in assert_error(empty, 400, "invalid_request", "notes")["error"]
    assert engine.submitted == []


def test_a_browser_may_send_the_field_that_is_not_used(client: FlaskClient, engine: FakeEngine) -> None:
    assert follow(client, notes="", melody=upload(MIDI)).status_code == 200
    assert follow(client, notes=NOTES, melody=(io.BytesIO(), "")).status_code == 200
    assert [request.params.melody for request in engine.submitted] == [LINE, LINE]


def test_a_form_without_a_file_may_be_url_encoded(client: FlaskClient) -> None:
    form = {"prompt": "solo cello", "duration": "1", "notes": NOTES}
    response = client.post("/generate-with-melody", data=form, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 200, response.json


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"notes": "  "}, "notes must contain at least one note"),
        ({"notes": "-:4"}, "notes must contain at least one note"),
        ({"notes": "C4:1 H4:1"}, "notes must have pitches such as C4, F#4 or Bb3, or - for a rest; note 2 is 'H4:1'."),
        ({"notes": "C10:1"}, "notes must have pitches from C-1 to G9"),
        ({"notes": "C4:0"}, "notes must have beats above 0"),
        ({"notes": "C4:-1"}, "above 0"),
        ({"notes": "C4:nan"}, "above 0"),
        ({"notes": "C4:inf"}, "above 0"),
        ({"notes": "C4:1 " * 2001, "bpm": "240"}, "notes must have at most 2,000 notes and rests"),
        ({"notes": "C4:121"}, "notes must be at most 60 seconds long, and have 60.5 at 120 beats per minute."),
        ({"notes": "C4:0.9"}, "notes must be at least 0.5 seconds long"),
        ({"notes": "C4:1 " * 20_001}, "notes must have at most 100000 characters"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("path", ["/generate-with-melody", "/generate-continuation-async"])
def test_other_notes_are_refused(
    client: FlaskClient, engine: FakeEngine, path: str, fields: dict[str, Any], problem: str
) -> None:
    audio = {} if path == "/generate-with-melody" else {"audio": (melody_file(), "a.wav"), "model_size": "melody"}
    response = follow(client, path, **fields, **audio)
    assert problem in assert_error(response, 400, "invalid_request", "notes")["error"]
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [(MIDI[:-1], "The MIDI file in melody ends too early."), (midi_file([(60, 200)]), "at most 60 seconds")],
    ids=["damaged", "too long"],
)
def test_other_midi_files_are_refused(client: FlaskClient, engine: FakeEngine, data: bytes, problem: str) -> None:
    assert problem in assert_error(follow(client, melody=upload(data)), 400, "invalid_melody", "melody")["error"]
    assert engine.submitted == []


def test_a_model_that_follows_no_melody_refuses_notes_as_it_refuses_melodies(client: FlaskClient) -> None:
    errors = [
        assert_error(follow(client, model_size="small", **melody), 400, "invalid_request", "model_size")["error"]
        for melody in ({"notes": NOTES}, {"melody": upload(MIDI)}, {"melody": (melody_file(), "m.wav")})
    ]
    assert len(set(errors)) == 1
    form = {"audio": (melody_file(), "a.wav"), "model_size": "small", "notes": NOTES}
    assert_error(follow(client, "/generate-continuation", **form), 400, "invalid_request", "model_size")


@pytest.mark.parametrize("path", ["/generate", "/generate-async", "/generate-stream"])
def test_routes_without_melodies_have_no_notes(client: FlaskClient, path: str) -> None:
    response = client.post(path, json={"prompt": "solo cello", "notes": NOTES})
    assert_error(response, 400, "invalid_request", "notes")


def test_the_settings_limit_notes_and_the_models_list_the_limits(tmp_path: Path) -> None:
    client = fake_app(tmp_path, max_melody_notes=3, max_melody_seconds=2).test_client()
    assert "at most 3 notes" in assert_error(follow(client, notes=NOTES), 400, "invalid_request", "notes")["error"]
    assert "at most 2 seconds" in assert_error(follow(client, notes="C4:5"), 400, "invalid_request", "notes")["error"]
    controls = {model["name"]: model["controls"]["notes"] for model in client.get("/models").json["models"]}
    assert controls["melody"] == {"maximum": 3, "maximum_duration": 2.0, "default_bpm": 120}
    assert controls["small"] is None


def test_a_prediction_may_follow_a_midi_file(client: FlaskClient, engine: FakeEngine) -> None:
    data = f"data:audio/midi;base64,{base64.b64encode(MIDI).decode()}"
    body = {"input": {"prompt": "solo cello", "duration": 1, "input_audio": data}}
    assert client.post("/predictions", json=body).status_code == 200
    assert engine.submitted[0].params.melody == LINE
    body["input"]["input_audio"] = f"data:audio/midi;base64,{base64.b64encode(MIDI[:-1]).decode()}"
    refused = client.post("/predictions", json=body)
    assert refused.status_code == 422
    assert "ends too early" in refused.get_data(as_text=True)
