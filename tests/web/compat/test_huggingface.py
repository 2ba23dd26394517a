"""Hugging Face's unmodified Python client makes music with this server."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from flask.testing import FlaskClient
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from audiocraft_api.web.compat.huggingface import TEXT_TO_AUDIO
from support.documents import section
from support.fakes import FakeEngine
from support.http import assert_error, fake_app
from support.keys import ENVIRONMENT_KEY
from support.served import Server


def music(server: Server, key: str = ENVIRONMENT_KEY, prompt: str = "cello", **parameters: Any) -> bytes:
    client = InferenceClient(base_url=f"{server.url}/hf/demo", token=key)
    return client.text_to_speech(prompt, **{"max_new_tokens": 50, **parameters})


@pytest.mark.parametrize("output_format", ["flac", "wav", "mp3", "ogg"])
def test_text_to_speech_is_music_in_each_format(server: Server, output_format: str) -> None:
    audio = music(server, extra_body={"output_format": output_format})
    assert soundfile.info(io.BytesIO(audio)).duration == pytest.approx(1, abs=0.1)


def test_flac_is_the_default(server: Server) -> None:
    assert music(server)[:4] == b"fLaC"


def test_a_wrong_key_is_refused(server: Server) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid or missing API key") as raised:
        music(server, key="wrong")
    assert raised.value.response.status_code == 401


def test_a_limit_is_reported(server: Server, spent_key: str) -> None:
    with pytest.raises(HfHubHTTPError) as raised:
        music(server, key=spent_key)
    assert raised.value.response.status_code == 429


def test_a_refused_prompt_has_a_suggestion(server: Server) -> None:
    with pytest.raises(HfHubHTTPError) as raised:
        music(server, prompt="kill yourself")
    assert raised.value.response.status_code == 422
    assert raised.value.response.json()["suggestion"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({"max_new_tokens": 20}, "max_new_tokens"), ({"top_k": -1}, "top_k"), ({"do_sample": False}, "do_sample")],
)
def test_a_bad_field_is_named(server: Server, parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(HfHubHTTPError, match=field) as raised:
        music(server, **parameters)
    assert raised.value.response.status_code == 400


def test_the_example_in_the_documentation_works(run_example: Callable[[str], None], tmp_path: Path) -> None:
    run_example("Hugging Face")
    assert soundfile.info(tmp_path / "beat.flac").duration == 2


def test_the_documentation_names_every_field() -> None:
    text = section("docs/compatibility.md", "Hugging Face")
    names = {*TEXT_TO_AUDIO.fields, *TEXT_TO_AUDIO.accepted}
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("path", ["/hf/small", "/models/facebook/musicgen-small"])
def test_the_fields_may_be_nested(client: FlaskClient, engine: FakeEngine, path: str) -> None:
    nested = {"generation_parameters": {"max_new_tokens": 100, "guidance_scale": 2}}
    response = client.post(path, json={"inputs": "cello", "parameters": nested}, headers={"Accept": "*/*"})
    assert response.mimetype == "audio/flac"
    params = engine.submitted[0].params
    assert (params.description, params.model, params.duration_seconds, params.cfg_coef) == ("cello", "small", 2, 2)


def test_json_has_the_audio_and_its_rate(client: FlaskClient) -> None:
    response = client.post(
        "/hf/small", json={"inputs": "cello", "parameters": {"duration": 1}}, headers={"Accept": "application/json"}
    )
    audio = base64.b64decode(response.json["audio"])
    assert soundfile.info(io.BytesIO(audio)).samplerate == response.json["sampling_rate"] == 32_000


def test_an_unknown_model_is_refused(client: FlaskClient) -> None:
    assert_error(client.post("/hf/who/knows", json={"inputs": "cello"}), 400, "invalid_request", "model")


def test_a_setting_turns_the_family_off(tmp_path: Path) -> None:
    client = fake_app(tmp_path, compat_huggingface=False).test_client()
    assert client.post("/hf/small", json={"inputs": "cello"}).status_code == 404
