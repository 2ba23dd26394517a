"""Loudness, fades and trimming over HTTP: what is refused, and what reaches the file. The engine is a fake."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.audio.finishing import Finishing, finished
from audiocraft_api.audio.loudness import loudness
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.command import decode_command, encode_command
from support.fakes import SAMPLE_RATE, FakeEngine
from support.http import assert_error, fake_app, generate, melody_file
from support.tasks import submit, wait_for

FLOAT = {"output_format": "wav32f"}
FADES = {"fade_in": 0.25, "fade_out": 0.5}


def audio_of(client: FlaskClient, url: str) -> Waveform:
    """Return the samples [C, T] of a file."""
    with client.get(url) as response:
        samples, _ = soundfile.read(io.BytesIO(response.get_data()), dtype="float32", always_2d=True)
    return np.asarray(samples.T)


class PaddedEngine(FakeEngine):
    """Generates a tone with silence around it: 0.25 seconds before and 0.5 seconds after."""

    def _audio(self, request: EngineRequest, num_samples: int) -> Waveform:
        audio = super()._audio(request, num_samples)
        audio[:, : SAMPLE_RATE // 4] = audio[:, -SAMPLE_RATE // 2 :] = 0
        return audio


@pytest.fixture
def padded(tmp_path: Path) -> FlaskClient:
    return fake_app(tmp_path, PaddedEngine()).test_client()


# --- loudness


def test_a_file_gets_the_loudness_that_is_asked_for(client: FlaskClient) -> None:
    body = generate(client, loudness=-18, **FLOAT).json
    assert loudness(audio_of(client, body["audio_url"]), SAMPLE_RATE) == pytest.approx(-18, abs=0.1)
    assert body["recipe"]["loudness"] == -18
    assert "fade_in" not in body["recipe"]


def test_the_default_leaves_the_audio_as_it_is(client: FlaskClient) -> None:
    plain, explicit = generate(client, seed=1).json, generate(client, seed=1, loudness=None, fade_in=0).json
    assert plain["recipe"].keys() == explicit["recipe"].keys()
    assert not {"loudness", "fade_in", "fade_out", "trim_silence"} & plain["recipe"].keys()
    with client.get(plain["audio_url"]) as first, client.get(explicit["audio_url"]) as second:
        assert first.get_data() == second.get_data()


def test_tasks_and_variations_are_finished(client: FlaskClient) -> None:
    result = wait_for(client, submit(client, duration=1, n=2, loudness=-20, fade_out=0.5, **FLOAT))["result"]
    for variation in result["variations"]:
        assert (variation["recipe"]["loudness"], variation["recipe"]["fade_out"]) == (-20, 0.5)
        audio = audio_of(client, variation["audio_url"])
        assert loudness(audio, SAMPLE_RATE) == pytest.approx(-20, abs=0.2)
        assert audio[0, -1] == 0


@pytest.mark.parametrize("value", [-30.5, -7.9, 0])
def test_a_loudness_out_of_range_is_refused(client: FlaskClient, value: float) -> None:
    assert_error(generate(client, loudness=value), 400, "invalid_request", "loudness")


def test_a_form_has_the_same_fields(client: FlaskClient) -> None:
    form = {"prompt": "cello", "duration": "1", "loudness": "-20", "fade_in": "0.5", "trim_silence": "true"}
    body = client.post("/generate-with-melody", data=form | {"melody": (melody_file(), "m.wav")}).json
    recipe = body["recipe"]
    assert (recipe["loudness"], recipe["fade_in"], recipe["trim_silence"]) == (-20, 0.5, True)


# --- fades


def test_a_file_fades_in_and_out(client: FlaskClient) -> None:
    plain = audio_of(client, generate(client, seed=1, **FLOAT).json["audio_url"])
    body = generate(client, seed=1, **FADES, **FLOAT).json
    wanted = finished(plain, SAMPLE_RATE, Finishing(fade_in_seconds=0.25, fade_out_seconds=0.5))
    np.testing.assert_array_equal(audio_of(client, body["audio_url"]), wanted)
    assert (body["recipe"]["fade_in"], body["recipe"]["fade_out"]) == (0.25, 0.5)


@pytest.mark.parametrize("output_format", ["wav", "flac"])
def test_a_stream_fades_as_the_file_does(client: FlaskClient, output_format: str) -> None:
    fields: dict[str, Any] = {"seed": 1, "output_format": output_format, **FADES}
    file = audio_of(client, generate(client, **fields).json["audio_url"])
    stream = client.post("/generate-stream", json={"prompt": "solo cello", "duration": 1, **fields}).get_data()
    samples, _ = soundfile.read(io.BytesIO(stream), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(samples.T, file)


@pytest.mark.parametrize(
    ("fades", "field"),
    [({"fade_in": 1.5}, "fade_in"), ({"fade_out": 1.1}, "fade_out"), ({"fade_in": 0.6, "fade_out": 0.6}, "fade_out")],
)
@pytest.mark.parametrize("route", ["/generate", "/generate-stream"])
def test_fades_longer_than_the_audio_are_refused(
    client: FlaskClient, engine: FakeEngine, route: str, fades: dict[str, float], field: str
) -> None:
    response = client.post(route, json={"prompt": "solo cello", "duration": 1, **fades})
    assert "at most 1 seconds" in assert_error(response, 400, "invalid_request", field)["error"]
    assert engine.submitted == []


@pytest.mark.parametrize("value", [-0.1, 30.5, "long"])
def test_fades_out_of_range_are_refused(client: FlaskClient, value: object) -> None:
    assert_error(generate(client, fade_in=value), 400, "invalid_request", "fade_in")


def test_a_continuation_fades_with_the_audio_that_it_begins_with(client: FlaskClient) -> None:
    form = {"prompt": "cello", "duration": "1", "fade_in": "0.5", "fade_out": "0.5", "output_format": "wav32f"}
    body = client.post("/generate-continuation", data=form | {"audio": (melody_file(), "a.wav")}).json
    audio = audio_of(client, body["audio_url"])
    assert audio.shape[1] == 2 * SAMPLE_RATE
    assert audio[0, 0] == audio[0, -1] == 0
    assert np.abs(audio[:, SAMPLE_RATE // 2 : 3 * SAMPLE_RATE // 2]).max() == pytest.approx(0.1, abs=1e-3)


def test_a_continuation_goes_on_from_the_audio_without_its_fades(client: FlaskClient, engine: FakeEngine) -> None:
    url = generate(client, loudness=-20, **FADES).json["audio_url"]
    assert generate(client, continue_from={"audio_url": url}).status_code == 200
    first, second = (request.result() for request in engine.submitted)
    assert first.codes is not None
    assert second.codes is not None
    np.testing.assert_array_equal(second.codes.tokens[:, : first.num_frames], first.codes.tokens)


# --- silence


def test_silence_is_trimmed(padded: FlaskClient) -> None:
    body = generate(padded, trim_silence=True, duration=2, **FLOAT).json
    assert body["duration"] == pytest.approx(1.25, abs=0.001)
    assert body["recipe"]["trim_silence"] is True
    assert body["recipe"]["duration"] == 2
    assert audio_of(padded, body["audio_url"]).shape[1] == round(body["duration"] * SAMPLE_RATE)


def test_trimmed_audio_is_continued_from_its_file(padded: FlaskClient, tmp_path: Path) -> None:
    url = generate(padded, trim_silence=True, duration=2).json["audio_url"]
    assert not list((tmp_path / "audio").rglob("*.codes"))
    body = generate(padded, continue_from={"audio_url": url}).json
    assert "codes" not in body["recipe"]
    assert body["recipe"]["continue_from"]["end"] == pytest.approx(1.25, abs=0.02)


# --- where it is impossible, and where it is stored


@pytest.mark.parametrize(("field", "value"), [("loudness", -16), ("trim_silence", True)])
def test_streams_refuse_what_needs_the_whole_audio(
    client: FlaskClient, engine: FakeEngine, field: str, value: object
) -> None:
    response = client.post("/generate-stream", json={"prompt": "solo cello", field: value})
    assert "needs the whole audio" in assert_error(response, 400, "invalid_request", field)["error"]
    assert engine.submitted == []


def test_the_models_list_the_limits(client: FlaskClient) -> None:
    controls = client.get("/models").json["models"][0]["controls"]
    assert controls["loudness"] == {"minimum": -30.0, "maximum": -8.0, "maximum_true_peak": -1.0}
    assert controls["fade_in"] == controls["fade_out"] == {"maximum": 30.0}
    assert controls["trim_silence"] == {"threshold": -60.0}


def test_a_task_is_stored_with_what_was_asked_for_only() -> None:
    plain, audio = encode_command(GenerateCommand("a", "small", 5.0))
    assert not {"loudness", "fade_in_seconds", "fade_out_seconds", "trim_silence"} & plain.keys()
    command = GenerateCommand("a", "small", 5.0, loudness=-14.0, fade_out_seconds=2.0, trim_silence=True)
    plain, audio = encode_command(command)
    assert decode_command(json.loads(json.dumps(plain)), audio).finishing == command.finishing


def test_the_cache_keeps_finished_audio_apart(tmp_path: Path) -> None:
    client = fake_app(tmp_path, result_cache_entries=10).test_client()
    assert [
        generate(client, seed=1, **fields).json["cached"] for fields in ({}, {"loudness": -20}, {"loudness": -20})
    ] == [
        False,
        False,
        True,
    ]


def test_a_performance_is_finished(client: FlaskClient) -> None:
    performance = {"frames": 50, "changes": [{"frame": 0, "prompts": [{"text": "cello"}]}], "model": "small", "seed": 1}
    response = client.post("/generate", json={"performance": performance, "fade_out": 0.5, **FLOAT})
    assert audio_of(client, response.json["audio_url"])[0, -1] == 0
    response = client.post("/generate", json={"performance": performance, "fade_out": 2})
    assert_error(response, 400, "invalid_request", "fade_out")
