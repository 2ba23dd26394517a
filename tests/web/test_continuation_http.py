"""Continuing a recording over HTTP: which part, what reaches the engine, and what comes back. The engine is a fake."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from audiocraft_api.core.params import AudioInput, GenerationParams, Segment
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.continuation import Part, continued, with_input
from audiocraft_api.tasks.command import decode_command, encode_command
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, melody_file
from support.tasks import wait_for


def recording(seconds: float, sample_rate: int = 16_000, subtype: str = "FLOAT") -> io.BytesIO:
    """Return a mono WAV file whose samples rise from 0 to 1, so that each one tells its time."""
    file = io.BytesIO()
    ramp = np.linspace(0, 1, int(seconds * sample_rate), endpoint=False)
    soundfile.write(file, ramp, sample_rate, format="WAV", subtype=subtype)
    file.seek(0)
    return file


def continue_audio(client: FlaskClient, route: str = "/generate-continuation", **fields: Any) -> TestResponse:
    """Continue a recording of 3 seconds, or `audio`, with one second of new audio."""
    audio = fields.pop("audio", None) or recording(3.0)
    form = {"prompt": "solo cello", "duration": "1", "audio": (audio, "a.wav")} | fields
    return client.post(route, data=form)


def samples_of(client: FlaskClient, body: Any) -> Any:
    with client.get(body["audio_url"]) as response:
        return soundfile.read(io.BytesIO(response.get_data()))[0]


def test_a_recording_is_continued_from_its_end(client: FlaskClient, engine: FakeEngine) -> None:
    body = continue_audio(client, seed="7").json
    params = engine.submitted[0].params
    assert params.audio_prompt is not None
    assert params.audio_prompt.waveform.shape == (1, 48_000)
    assert params.duration_seconds == 4.0
    assert body["duration"] == 4.0
    assert len(samples_of(client, body)) == 4 * 32_000


def test_the_result_may_leave_out_the_input(client: FlaskClient) -> None:
    whole = continue_audio(client, seed="7").json
    new = continue_audio(client, seed="7", include_input="false").json
    assert (new["duration"], new["recipe"]["duration"]) == (1.0, 1.0)
    np.testing.assert_array_equal(samples_of(client, new), samples_of(client, whole)[3 * 32_000 :])


def test_start_and_end_choose_the_part(client: FlaskClient, engine: FakeEngine) -> None:
    body = continue_audio(client, start="0.5", end="2.25").json
    assert engine.submitted[0].params.duration_seconds == pytest.approx(1.74 + 1)
    prompt = engine.submitted[0].params.audio_prompt
    assert prompt is not None
    times = 3 * prompt.waveform[0]
    assert (times[0], times[-1]) == (pytest.approx(0.51, abs=1e-3), pytest.approx(2.25, abs=1e-3))
    recipe = body["recipe"]
    assert (recipe["start"], recipe["end"], recipe["include_input"]) == (0.51, 2.25, True)


def test_a_recipe_sent_back_continues_the_same_samples(client: FlaskClient) -> None:
    recipe = continue_audio(client, audio=recording(2.777, 44_100), start="0.333", seed="7").json["recipe"]
    again = {name: str(recipe[name]) for name in ("start", "end", "include_input", "duration", "seed")}
    second = continue_audio(client, audio=recording(2.777, 44_100), **again).json["recipe"]
    assert second | {"created": ""} == recipe | {"created": ""}
    assert len(recipe["audio"]) == 64


def test_the_recipe_is_in_the_tags(client: FlaskClient) -> None:
    body = continue_audio(client).json
    with client.get(body["audio_url"]) as response:
        assert b'"include_input":true' in response.get_data()


def test_a_task_continues_a_recording(client: FlaskClient, engine: FakeEngine) -> None:
    response = continue_audio(client, "/generate-continuation-async", duration="40", start="1", include_input="false")
    task = wait_for(client, response.json["task_id"])
    assert task["result"]["duration"] == 40.0
    assert (task["result"]["recipe"]["start"], task["result"]["recipe"]["end"]) == (1.0, 3.0)
    assert task["result"]["recipe"]["extend_stride"] == 18.0
    assert engine.submitted[0].params.duration_seconds == 42.0


def test_a_continuation_may_follow_a_melody(client: FlaskClient, engine: FakeEngine) -> None:
    response = continue_audio(client, model_size="melody", melody=(melody_file(), "m.wav"))
    assert response.status_code == 200, response.json
    params = engine.submitted[0].params
    assert params.melody is not None
    assert params.audio_prompt is not None
    assert (params.melody.waveform.shape[1], params.audio_prompt.waveform.shape[1]) == (16_000, 48_000)
    refused = continue_audio(client, model_size="small", melody=(melody_file(), "m.wav"))
    assert "Choose one of: medium" in assert_error(refused, 400, "invalid_request", "model_size")["error"]


def test_a_browser_may_send_an_empty_melody_field(client: FlaskClient, engine: FakeEngine) -> None:
    assert continue_audio(client, melody=(io.BytesIO(), "")).status_code == 200
    assert engine.submitted[0].params.melody is None


def test_a_continuation_has_variations(client: FlaskClient) -> None:
    body = continue_audio(client, n="2", seed="3", include_input="false").json
    assert [(part["seed"], part["duration"]) for part in body["variations"]] == [(3, 1.0), (4, 1.0)]


def test_continuations_are_cached(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine=engine, result_cache_entries=10).test_client()
    fields: list[dict[str, str]] = [{}, {"start": "1"}, {"include_input": "false"}]
    cached = [continue_audio(client, seed="1", **each).json["cached"] for each in fields * 2]
    assert cached == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"start": "-1"}, "start"),
        ({"start": "nan"}, "start"),
        ({"start": "2.95"}, "start"),
        ({"start": "4"}, "start"),
        ({"start": "1", "end": "1.05"}, "end"),
        ({"start": "2", "end": "1"}, "end"),
        ({"end": "0.05"}, "end"),
        ({"end": "0"}, "end"),
        ({"end": "3.5"}, "end"),
        ({"start": "1", "end": "31"}, "start"),
        ({"start": "0", "audio": recording(31, 8_000, "ULAW")}, "start"),
        ({"include_input": "maybe"}, "include_input"),
        ({"duration": "31"}, "duration"),
        ({"segments": "[]"}, "segments"),
        ({"n": "9"}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"model_size": "enormous"}, "model_size"),
    ],
)
def test_what_cannot_be_continued_is_refused(client: FlaskClient, fields: dict[str, Any], named: str) -> None:
    if "audio" in fields:  # the parameters of all tests are made at once
        fields["audio"].seek(0)
    assert_error(continue_audio(client, **fields), 400, "invalid_request", named)


def test_a_form_without_a_recording_is_refused(client: FlaskClient) -> None:
    response = client.post("/generate-continuation", data={"prompt": "a"})
    assert assert_error(response, 400, "invalid_request", "audio")["error"] == "No audio file provided"


def test_a_file_that_is_not_audio_is_refused_in_the_terms_of_the_field(client: FlaskClient) -> None:
    text = io.BytesIO(b"#EXTM3U\nsong.mp3\n")
    error = assert_error(continue_audio(client, audio=text), 400, "invalid_audio", "audio")["error"]
    assert "playlist" in error
    short = assert_error(continue_audio(client, audio=recording(0.3)), 400, "invalid_audio", "audio")["error"]
    assert short == "The audio must be at least 0.5 seconds long."


def test_a_recording_may_be_longer_than_a_melody(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine, max_melody_seconds=2, max_continuation_seconds=35).test_client()
    assert continue_audio(client, audio=recording(35, 8_000, "ULAW")).json["recipe"]["end"] == 35.0
    long = continue_audio(client, audio=recording(36, 8_000, "ULAW"))
    error = assert_error(long, 400, "invalid_audio", "audio")["error"]
    assert error == "The audio must be at most 35 seconds long."


# --- which part


def command(seconds: float, **fields: Any) -> GenerateCommand:
    return GenerateCommand("a", "small", seconds, seed=1, **fields)


def noise(seconds: float, sample_rate: int = 32_000, channels: int = 1) -> AudioInput:
    generator = np.random.default_rng(0)
    return AudioInput(generator.random((channels, int(seconds * sample_rate)), np.float32), sample_rate)


@pytest.mark.parametrize(
    ("length", "new", "stride", "start"),
    [(60, 5, 18, 35), (60, 18, 18, 48), (60, 100, 18, 48), (60, 100, 20, 50), (10, 5, 18, 0), (29, 1, 18, 0)],
)
def test_by_default_a_part_is_as_long_as_the_window_permits(
    length: float, new: float, stride: float, start: float
) -> None:
    found = continued(
        command(new, extend_stride_seconds=float(stride)),
        noise(length, 8_000),
        Part(),
        include_input=True,
        window_seconds=30.0,
    )
    assert (found.prompt_start, found.prompt_end) == (start, length)


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_a_part_consists_of_whole_frames_at_any_rate(sample_rate: int) -> None:
    audio = noise(1.999, sample_rate, channels=2)
    found = continued(command(5.0), audio, Part(), include_input=True, window_seconds=30.0)
    assert found.audio_prompt is not None
    part = found.audio_prompt.waveform
    np.testing.assert_array_equal(part, audio.waveform[:, -part.shape[1] :])
    assert 0 <= 99 * sample_rate / 50 - part.shape[1] < 1
    request = with_input(params_of(found))
    assert request.duration_seconds == 1.98 + 5.0


def params_of(found: GenerateCommand) -> GenerationParams:
    segments = (Segment("a", 2.0), Segment("b", 3.0))
    return GenerationParams("small", "a", 5.0, 1, audio_prompt=found.audio_prompt, segments=segments)


def test_segments_begin_with_the_new_audio() -> None:
    found = continued(command(5.0), noise(2.0), Part(), include_input=True, window_seconds=30.0)
    segments = with_input(params_of(found)).segments
    assert [segment.duration_seconds for segment in segments] == [4.0, 3.0]


def test_a_task_stores_the_part_bit_for_bit() -> None:
    found = continued(command(5.0), noise(2.0), Part(0.5), include_input=False, window_seconds=30.0)
    decoded = decode_command(*encode_command(found))
    assert decoded.audio_prompt is not None
    assert found.audio_prompt is not None
    np.testing.assert_array_equal(decoded.audio_prompt.waveform, found.audio_prompt.waveform)
    assert (decoded.prompt_start, decoded.prompt_end, decoded.include_input) == (0.5, 2.0, False)


def test_a_stride_must_be_shorter_than_the_window_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text('{"short": {"checkpoint": "org/short", "window_seconds": 10}}')
    client = fake_app(tmp_path, models_file=tmp_path / "models.json").test_client()
    response = continue_audio(client, model_size="short", duration="9", start="1", extend_stride="18")
    assert "less than 10" in assert_error(response, 400, "invalid_request", "extend_stride")["error"]
    assert continue_audio(client, model_size="short", duration="8").status_code == 200
