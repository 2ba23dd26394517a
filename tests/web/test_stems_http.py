"""Stems over HTTP: where they appear, what is refused, how they are stored. Only the engine is a fake."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.core.params import Waveform
from audiocraft_api.core.separation import STEMS
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.tasks.command import decode_command, encode_command
from audiocraft_api.tasks.store.base import audio_filenames
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate, melody_file
from support.tasks import submit, wait_for

FIELDS: dict[str, Any] = {"model_size": "demo", "stems": True, "output_format": "wav32f"}


@pytest.fixture
def client(tmp_path: Path, engine: FakeEngine, separator_directory: Path) -> FlaskClient:
    (tmp_path / "checkpoints").symlink_to(separator_directory)
    return fake_app(tmp_path, engine, offline=True, result_cache_entries=10).test_client()


def samples_of(audio: bytes) -> Waveform:
    """Return the samples [C, T] of a file."""
    samples, _ = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    return np.asarray(samples.T)


def content(client: FlaskClient, url: str) -> bytes:
    with client.get(url) as response:
        assert response.status_code == 200
        return response.get_data()


def assert_adds_up(mix: bytes, stems: dict[str, bytes]) -> None:
    assert tuple(stems) == STEMS
    total = sum(samples_of(stem) for stem in stems.values())
    np.testing.assert_allclose(total, samples_of(mix), atol=1e-6)


def fetched(client: FlaskClient, body: dict[str, Any]) -> dict[str, bytes]:
    return {name: content(client, url) for name, url in body["stems"].items()}


def test_stems_are_further_files_that_add_up_to_the_audio(client: FlaskClient) -> None:
    body = generate(client, **FIELDS).json
    assert_adds_up(content(client, body["audio_url"]), fetched(client, body))
    assert body["recipe"]["stems"] is True
    assert body["recipe"]["separator"].startswith("built-in@")
    assert len({body["audio_url"], *body["stems"].values()}) == 5
    body = generate(client, return_type="base64", **FIELDS).json
    stems = {name: base64.b64decode(stem) for name, stem in body["stems"].items()}
    assert_adds_up(base64.b64decode(body["audio"]), stems)


def test_without_the_field_nothing_is_separated(client: FlaskClient) -> None:
    body = generate(client, model_size="demo").json
    assert not {"stems", "separator"} & (body.keys() | body["recipe"].keys())
    explicit = generate(client, model_size="demo", seed=body["seed"], stems=False).json
    assert content(client, explicit["audio_url"]) == content(client, body["audio_url"])


def test_the_stems_of_finished_audio_add_up_to_it(client: FlaskClient) -> None:
    body = generate(client, loudness=-16, fade_out=0.5, **FIELDS).json
    assert_adds_up(content(client, body["audio_url"]), fetched(client, body))


def test_the_tags_of_a_stem_name_it(client: FlaskClient) -> None:
    body = generate(client, **FIELDS | {"output_format": "flac"}).json
    with soundfile.SoundFile(io.BytesIO(content(client, body["stems"]["bass"]))) as file:
        assert file.title == "solo cello (bass)"
        assert json.loads(file.comment)["stem"] == "bass"
    with soundfile.SoundFile(io.BytesIO(content(client, body["audio_url"]))) as file:
        assert file.title == "solo cello"
        assert "stem" not in json.loads(file.comment)


def test_tasks_and_variations_have_stems(client: FlaskClient) -> None:
    task = wait_for(client, submit(client, n=2, **FIELDS), seconds=120)
    first, second = task["result"]["variations"]
    assert task["result"]["stems"] == first["stems"]
    assert set(first["stems"].values()).isdisjoint(second["stems"].values())
    assert_adds_up(content(client, second["audio_url"]), fetched(client, second))


def test_a_synchronous_request_that_became_a_task_has_stems(client: FlaskClient) -> None:
    for return_type in ("url", "base64"):
        fields = {"prompt": "solo cello", "duration": 1, "return_type": return_type, **FIELDS}
        body = client.post("/generate", json=fields, headers={"Prefer": "wait=60"}).json
        assert tuple(body["stems"]) == STEMS
    stems = {name: base64.b64decode(stem) for name, stem in body["stems"].items()}
    assert_adds_up(base64.b64decode(body["audio"]), stems)


def test_a_form_has_the_field(client: FlaskClient) -> None:
    form = {"prompt": "cello", "duration": "1", "model_size": "demo", "stems": "true"}
    body = client.post("/generate-with-melody", data=form | {"melody": (melody_file(), "m.wav")}).json
    assert tuple(body["stems"]) == STEMS


def test_streams_refuse_the_field(client: FlaskClient, engine: FakeEngine) -> None:
    response = client.post("/generate-stream", json={"prompt": "solo cello", "stems": True})
    assert "needs the whole audio" in assert_error(response, 400, "invalid_request", "stems")["error"]
    assert engine.submitted == []


def test_a_missing_separator_is_reported_before_any_work(client: FlaskClient, engine: FakeEngine) -> None:
    response = generate(client, **FIELDS | {"model_size": "small"})
    assert "adefossez/HTDemucs is not on this machine" in assert_error(response, 503, "model_unavailable")["error"]
    assert response.headers["Retry-After"]
    assert engine.submitted == []


def test_cached_audio_has_its_stems(client: FlaskClient, tmp_path: Path) -> None:
    made, cached = (generate(client, seed=1, **FIELDS).json for _ in range(2))
    assert cached["cached"]
    assert fetched(client, cached) == fetched(client, made)
    assert content(client, cached["audio_url"]) == content(client, made["audio_url"])
    assert not generate(client, seed=1, model_size="demo", output_format="wav32f").json["cached"]
    assert len(list((tmp_path / "audio").glob("*.zip"))) == 1


def test_the_files_of_a_task_are_those_of_its_stems_too() -> None:
    part = {"filename": "a.wav", "stems": {"drums": "b.wav", "bass": "c.wav"}}
    assert audio_filenames([part, {"variations": [part, {"error": "x"}]}, None]) == ["a.wav", "b.wav", "c.wav"] * 2


def test_a_task_is_stored_with_the_field_only_if_it_is_set() -> None:
    plain, audio = encode_command(GenerateCommand("a", "small", 5.0))
    assert "stems" not in plain
    plain, audio = encode_command(GenerateCommand("a", "small", 5.0, stems=True))
    assert decode_command(json.loads(json.dumps(plain)), audio).stems


def test_the_models_list_the_stems(client: FlaskClient) -> None:
    assert client.get("/models").json["models"][0]["controls"]["stems"] == {"names": list(STEMS)}
