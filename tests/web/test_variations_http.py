"""Variations of one request over HTTP. The engine is a fake; `test_end_to_end.py` compares real audio."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api.core.constants import MAX_SEED
from audiocraft_api.core.errors import GenerationFailed, QueueFull
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate, melody_file
from support.served import wait_until
from support.tasks import get_task, submit, wait_for

FIELDS_OF_AUDIO = {
    *("generation_time", "format", "sample_rate", "duration", "seed", "model", "revision", "cached", "recipe")
}


def seeds_of(body: dict[str, Any]) -> list[int]:
    return [variation["seed"] for variation in body["variations"]]


def audio_files(directory: Path) -> list[Path]:
    return list((directory / "audio").rglob("*.wav"))


def test_one_request_makes_several_variations(client: FlaskClient, engine: FakeEngine) -> None:
    body = generate(client, n=3, seed=7).json
    assert seeds_of(body) == [7, 8, 9]
    assert sorted(request.params.seed for request in engine.submitted) == [7, 8, 9]
    for variation in body["variations"]:
        assert set(variation) == FIELDS_OF_AUDIO | {"audio_url"}
        assert variation["recipe"]["seed"] == variation["seed"]
        assert "n" not in variation["recipe"]
        with client.get(variation["audio_url"]) as response:
            assert response.status_code == 200
    first = {name: body[name] for name in FIELDS_OF_AUDIO | {"audio_url"}}
    assert first == body["variations"][0]
    assert len({variation["audio_url"] for variation in body["variations"]}) == 3


def test_variations_may_be_inside_the_response(client: FlaskClient) -> None:
    body = generate(client, n=2, return_type="base64", output_format="flac").json
    assert [base64.b64decode(variation["audio"])[:4] for variation in body["variations"]] == [b"fLaC"] * 2
    assert body["audio"] == body["variations"][0]["audio"]
    assert seeds_of(body) == [body["seed"], body["seed"] + 1]


def test_a_single_result_has_no_variations(client: FlaskClient) -> None:
    assert "variations" not in generate(client).json
    assert "variations" not in generate(client, n=1).json
    assert "variations" not in wait_for(client, submit(client, n=1))["result"]


def test_seeds_continue_with_0_after_the_largest(client: FlaskClient) -> None:
    assert seeds_of(generate(client, n=3, seed=MAX_SEED).json) == [MAX_SEED, 0, 1]


def test_a_melody_form_makes_variations(client: FlaskClient, engine: FakeEngine) -> None:
    form = {"prompt": "a", "duration": "1", "n": "2", "seed": "4", "melody": (melody_file(), "m.wav")}
    assert seeds_of(client.post("/generate-with-melody", data=form).json) == [4, 5]
    assert all(request.params.melody is not None for request in engine.submitted)
    form["melody"] = (melody_file(), "m.wav")
    response = client.post("/generate-with-melody-async", data=form)
    assert seeds_of(wait_for(client, response.json["task_id"])["result"]) == [4, 5]


def test_a_task_makes_variations_and_shows_progress_over_all_of_them(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    task_id = submit(client, n=3, seed=7)
    wait_until(lambda: get_task(client, task_id)["total"] == 150)
    engine.open_gate.set()
    task = wait_for(client, task_id)
    assert task["seed"] == 7
    assert seeds_of(task["result"]) == [7, 8, 9]
    first = task["result"]["variations"][0]
    assert first["audio_url"] == task["audio_url"]
    assert set(first) == FIELDS_OF_AUDIO | {"audio_url", "filename"}
    for variation in task["result"]["variations"]:
        with client.get(variation["audio_url"]) as response:
            assert response.status_code == 200


@pytest.mark.parametrize("return_type", ["url", "base64"])
def test_a_client_may_wait_for_a_task_with_variations(client: FlaskClient, return_type: str) -> None:
    fields = {"prompt": "a", "duration": 1, "n": 2, "seed": 7, "return_type": return_type}
    body = client.post("/generate", json=fields, headers={"Prefer": "wait=30"}).json
    same = client.post("/generate", json=fields).json
    assert set(body) == set(same)
    assert [set(variation) for variation in body["variations"]] == [set(part) for part in same["variations"]]
    assert seeds_of(body) == [7, 8]


@pytest.mark.parametrize(("failing", "first"), [({8}, 7), ({7}, 8)])
def test_a_failed_variation_is_named_and_the_others_are_delivered(
    client: FlaskClient, engine: FakeEngine, failing: set[int], first: int
) -> None:
    engine.failure, engine.failing_seeds = GenerationFailed("It is silent."), frozenset(failing)
    failed = {"seed": next(iter(failing)), "error": "It is silent.", "code": "generation_failed"}
    task = wait_for(client, submit(client, n=2, seed=7))
    for body in (generate(client, n=2, seed=7).json, task["result"]):
        assert seeds_of(body) == [7, 8]
        assert failed in body["variations"]
        assert body["seed"] == first
        assert [part.get("recipe", {}).get("seed") for part in body["variations"]].count(first) == 1
    assert task["status"] == "completed"


def test_a_request_fails_if_all_variations_fail(client: FlaskClient, engine: FakeEngine, tmp_path: Path) -> None:
    engine.failure = GenerationFailed("It is silent.")
    assert_error(generate(client, n=2), 500, "generation_failed")
    task = wait_for(client, submit(client, n=2))
    assert (task["status"], task["error"]) == ("failed", "It is silent.")
    assert not audio_files(tmp_path)


class NearlyFullEngine(FakeEngine):
    """An engine that is full when the variation with the seed 8 arrives."""

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        if params.seed == 8:
            raise QueueFull("Full.", retry_after_seconds=7.0)
        return super().submit(params, deadline=deadline)


def test_a_full_engine_refuses_the_request_and_stops_the_variations_it_accepted(tmp_path: Path) -> None:
    engine = NearlyFullEngine()
    engine.open_gate.clear()
    client = fake_app(tmp_path, engine).test_client()
    assert_error(generate(client, n=3, seed=7), 503, "queue_full")
    wait_until(lambda: all(request.has_ended for request in engine.submitted))
    assert not audio_files(tmp_path)


def test_variations_count_with_their_duration_toward_the_daily_quota(tmp_path: Path) -> None:
    client = fake_app(tmp_path, audio_seconds_per_day=10).test_client()
    assert generate(client, n=4, duration=2).status_code == 200
    assert "2 seconds left" in assert_error(generate(client, n=2, duration=2), 429, "quota_exceeded")["error"]


def test_each_variation_is_cached(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine=engine, result_cache_entries=10).test_client()
    generate(client, seed=8)
    body = generate(client, seed=7, n=3).json
    assert [variation["cached"] for variation in body["variations"]] == [False, True, False]
    assert generate(client, seed=9).json["cached"]
    assert len(engine.submitted) == 3


@pytest.mark.parametrize("n", [0, 9, 1.5, "2", True, None])
def test_numbers_out_of_range_are_refused(client: FlaskClient, n: Any) -> None:
    assert_error(generate(client, n=n), 400, "invalid_request", "n")


def test_all_variations_together_have_at_most_300_seconds(client: FlaskClient) -> None:
    assert generate(client, n=8, duration=30).status_code == 200
    response = client.post("/generate-async", json={"prompt": "a", "duration": 90, "n": 4})
    assert "at most 3 for 90 seconds" in assert_error(response, 400, "invalid_request", "n")["error"]
    control = client.get("/models").json["models"][0]["controls"]["n"]
    assert control == {"minimum": 1, "maximum": 8, "maximum_total_duration": 300.0}


def test_streams_refuse_variations(client: FlaskClient) -> None:
    response = client.post("/generate-stream", json={"prompt": "a", "n": 2})
    assert "must be 1 for a stream" in assert_error(response, 400, "invalid_request", "n")["error"]
    assert client.post("/generate-stream", json={"prompt": "a", "duration": 1, "n": 1}).status_code == 200
