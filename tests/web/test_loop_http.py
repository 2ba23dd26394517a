"""Loops over HTTP: what is refused, what comes back, and the error if no candidate loops. The engine is a fake."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.audio.looping import LoopShape
from audiocraft_api.audio.loudness import loudness, true_peak
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.generation.candidates import SEED_STEP
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.command import decode_command, encode_command
from support.fakes import SAMPLE_RATE, FakeEngine
from support.http import assert_error, fake_app, melody_file
from support.loops import assert_no_jump
from support.rhythms import rhythm
from support.tasks import wait_for

LOOP: dict[str, Any] = {"prompt": "techno", "bpm": 120, "bars": 1, "loop": True, "seed": 5, "output_format": "wav32f"}
SHAPE = LoopShape(120, 1, 4)


class RhythmEngine(FakeEngine):
    """Plays rhythms at a tempo for each candidate: by default, only the second one loops at 120 bpm."""

    tempos = (100.0, 121.0, 97.3, 140.0)

    def _audio(self, request: EngineRequest, num_samples: int) -> Waveform:
        seed = request.params.seed
        bpm = self.tempos[seed // SEED_STEP % len(self.tempos)]
        return rhythm(bpm, num_samples / SAMPLE_RATE, seed=seed % SEED_STEP)[None]


@pytest.fixture
def engine() -> RhythmEngine:
    return RhythmEngine()


def audio_of(client: FlaskClient, url: str) -> Waveform:
    """Return the samples [C, T] of a file."""
    with client.get(url) as response:
        samples, _ = soundfile.read(io.BytesIO(response.get_data()), dtype="float32", always_2d=True)
    return np.asarray(samples.T)


def generate(client: FlaskClient, **fields: Any) -> Any:
    return client.post("/generate", json=LOOP | fields)


def finished_task(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    task_id = client.post("/generate-async", json=LOOP | fields).json["task_id"]
    return wait_for(client, task_id, seconds=60)


def test_the_best_candidate_becomes_a_loop_of_the_exact_length(client: FlaskClient, engine: RhythmEngine) -> None:
    body = generate(client).json
    audio = audio_of(client, body["audio_url"])
    assert audio.shape == (1, 2 * SAMPLE_RATE)
    assert body["duration"] == 2.0
    assert_no_jump(audio, SAMPLE_RATE, SHAPE)
    assert body["loop"]["candidate"] == 2
    assert body["loop"]["tempo_bpm"] == pytest.approx(121, abs=0.2)
    assert body["loop"]["stretch"] == pytest.approx(120 / 121, abs=2e-3)
    assert 0 <= body["loop"]["seam"] <= 1
    recipe = body["recipe"]
    assert (recipe["loop"], recipe["bars"], recipe["bpm"], recipe["candidates"]) == (True, 1, 120, 4)
    assert (recipe["seed"], recipe["duration"], recipe["wording"]) == (5, 2.0, "bpm: 120")
    assert len(engine.submitted) == 4
    assert [request.params.seed for request in engine.submitted] == [5 + index * SEED_STEP for index in range(4)]
    assert {request.params.duration_seconds for request in engine.submitted} == {SHAPE.generated_seconds}


@pytest.mark.parametrize("output_format", ["wav", "wav24", "flac", "ogg"])
def test_files_of_lossless_formats_and_vorbis_have_the_exact_length(client: FlaskClient, output_format: str) -> None:
    body = generate(client, bpm=121, bars=1, time_signature="3/4", output_format=output_format).json
    shape = LoopShape(121, 1, 3)
    audio = audio_of(client, body["audio_url"])
    assert audio.shape[1] == shape.num_samples(SAMPLE_RATE) == round(3 * 60 * SAMPLE_RATE / 121)
    assert_no_jump(audio, SAMPLE_RATE, shape)
    assert body["loop"]["stretch"] == 1


def test_the_same_request_makes_the_same_loop_whatever_n_is(client: FlaskClient) -> None:
    single = audio_of(client, generate(client).json["audio_url"])
    many = generate(client, n=2).json["variations"]
    np.testing.assert_array_equal(audio_of(client, many[0]["audio_url"]), single)
    assert not np.array_equal(audio_of(client, many[1]["audio_url"]), single)


def test_without_the_field_nothing_is_cut(client: FlaskClient) -> None:
    fields = {"prompt": "techno", "bpm": 120, "seed": 5, "duration": 1}
    plain = client.post("/generate", json=fields).json
    explicit = client.post("/generate", json=fields | {"loop": False, "bars": None, "candidates": 4}).json
    assert not {"loop", "bars", "candidates"} & (plain.keys() | plain["recipe"].keys())
    np.testing.assert_array_equal(audio_of(client, plain["audio_url"]), audio_of(client, explicit["audio_url"]))


def test_no_candidate_that_loops_is_an_error_that_names_the_tempi(client: FlaskClient) -> None:
    error = assert_error(generate(client, bpm=85), 422, "no_loop")["error"]
    assert "within 3 % of 85 bpm" in error
    for tempo in ("100.0", "121.0", "97.3", "140.0"):
        assert tempo in error
    task = finished_task(client, bpm=85)
    assert (task["status"], task["code"]) == ("failed", "no_loop")
    assert "97.3" in task["error"]


def test_a_task_and_its_loops_have_the_report(client: FlaskClient) -> None:
    result = finished_task(client, n=2)["result"]
    assert result["loop"] == result["variations"][0]["loop"]
    assert result["variations"][1]["loop"]["candidate"] == 2
    assert audio_of(client, result["variations"][1]["audio_url"]).shape == (1, 2 * SAMPLE_RATE)


def test_a_louder_loop_has_the_same_length_and_no_jump(client: FlaskClient) -> None:
    quiet, loud = (audio_of(client, generate(client, loudness=target).json["audio_url"]) for target in (-24, -9))
    assert loudness(np.tile(quiet, 3), SAMPLE_RATE) == pytest.approx(-24, abs=0.2)
    assert true_peak(loud) == pytest.approx(-1, abs=0.1)  # limited
    for audio in (quiet, loud):
        assert audio.shape == (1, 2 * SAMPLE_RATE)
        assert_no_jump(audio, SAMPLE_RATE, SHAPE)


def test_the_stems_of_a_loop_are_loops(client: FlaskClient, tmp_path: Path, separator_directory: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(separator_directory)
    body = generate(client, model_size="demo", stems=True).json
    stems = {name: audio_of(client, url) for name, url in body["stems"].items()}
    np.testing.assert_allclose(sum(stems.values()), audio_of(client, body["audio_url"]), atol=1e-6)
    for stem in stems.values():
        differences = np.abs(np.diff(np.tile(stem[0], 2)))
        assert differences[2 * SAMPLE_RATE - 1] <= max(1e-3, np.abs(np.diff(stem[0])).max())


def test_a_form_with_a_melody_has_the_fields(client: FlaskClient) -> None:
    form = {name: str(value).lower() for name, value in LOOP.items()} | {"melody": (melody_file(), "m.wav")}
    body = client.post("/generate-with-melody", data=form).json
    assert body["duration"] == 2.0


def test_a_loop_follows_notes_at_its_tempo(client: FlaskClient, engine: RhythmEngine) -> None:
    form = {name: str(value).lower() for name, value in LOOP.items()} | {"notes": "C4:1 E4:1 G4:2"}
    body = client.post("/generate-with-melody", data=form).json
    assert audio_of(client, body["audio_url"]).shape == (1, SHAPE.num_samples(SAMPLE_RATE))
    lines = [request.params.melody for request in engine.submitted]
    assert len(lines) == 4  # one of each candidate
    assert {line.seconds for line in lines} == {4 * 60 / 120}


def test_a_cached_loop_has_its_report(tmp_path: Path) -> None:
    client = fake_app(tmp_path, RhythmEngine(), result_cache_entries=10).test_client()
    made, cached = (generate(client).json for _ in range(2))
    assert cached["cached"]
    assert cached["loop"] == made["loop"]


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bpm": None}, "bpm"),
        ({"bars": None}, "bars"),
        ({"bars": 0}, "bars"),
        ({"bars": 33}, "bars"),
        ({"candidates": 9}, "candidates"),
        ({"loop": False}, "bars"),
        ({"loop": False, "bars": None, "candidates": 2}, "candidates"),
        ({"duration": 2}, "duration"),
        ({"fade_in": 0.1}, "fade_in"),
        ({"fade_out": 0.1}, "fade_out"),
        ({"trim_silence": True}, "trim_silence"),
        ({"output_format": "mp3"}, "output_format"),
        ({"output_format": "m4a"}, "output_format"),
        ({"output_format": "opus"}, "output_format"),
        ({"bpm": 240, "time_signature": "3/4"}, "bars"),  # 0.75 seconds
        ({"bpm": 120, "bars": 16}, "bars"),  # 32 seconds
        ({"bars": 8, "candidates": 8, "n": 8}, "n"),
        ({"prompt": None, "segments": [{"prompt": "piano", "duration": 2}]}, "segments"),
        ({"continue_from": {"audio_url": "/audio/12345678-1234-4234-8234-123456789012.wav"}}, "continue_from"),
    ],
)
def test_what_a_loop_cannot_have_is_refused_by_name(
    client: FlaskClient, engine: RhythmEngine, changes: dict[str, Any], field: str
) -> None:
    fields = {name: value for name, value in (LOOP | changes).items() if value is not None}
    assert_error(client.post("/generate", json=fields), 400, "invalid_request", field)
    assert engine.submitted == []


@pytest.mark.parametrize("field", ["loop", "bars", "candidates"])
def test_streams_refuse_loops(client: FlaskClient, engine: RhythmEngine, field: str) -> None:
    response = client.post("/generate-stream", json={"prompt": "techno", "bpm": 120, field: LOOP.get(field, 2)})
    assert "needs the whole audio" in assert_error(response, 400, "invalid_request", field)["error"]
    assert engine.submitted == []


def test_continuations_and_performances_refuse_loops(client: FlaskClient, engine: RhythmEngine) -> None:
    form = {name: str(value).lower() for name, value in LOOP.items()} | {"audio": (melody_file(), "a.wav")}
    assert_error(client.post("/generate-continuation", data=form), 400, "invalid_request", "loop")
    performance = {"frames": 50, "changes": [{"frame": 0, "prompts": [{"text": "cello"}]}], "model": "small", "seed": 1}
    response = client.post("/generate", json={"performance": performance, "loop": True})
    assert_error(response, 400, "invalid_request", "loop")
    assert engine.submitted == []


def test_a_task_may_have_longer_loops(client: FlaskClient) -> None:
    response = client.post("/generate-async", json=LOOP | {"bars": 17})
    assert response.status_code == 202
    client.delete(f"/tasks/{response.json['task_id']}")


def test_the_models_list_the_limits(client: FlaskClient) -> None:
    control = client.get("/models").json["models"][0]["controls"]["loop"]
    formats = ["wav", "wav24", "wav32f", "flac", "ogg"]
    assert control == {"minimum_bars": 1, "maximum_bars": 32, "maximum_candidates": 8, "formats": formats}


def test_a_task_is_stored_with_what_was_asked_for_only() -> None:
    plain, audio = encode_command(GenerateCommand("a", "small", 5.0))
    assert not {"loop", "bars", "candidates"} & plain.keys()
    command = GenerateCommand("a", "small", 2.0, loop=True, bars=1, bpm=120, candidates=2)
    plain, audio = encode_command(command)
    assert decode_command(json.loads(json.dumps(plain)), audio).loop_shape == SHAPE
