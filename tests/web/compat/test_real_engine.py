"""The unmodified clients get the audio of `/generate` from a real server with the real engine and the demo model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import replicate
import soundfile
from elevenlabs.client import ElevenLabs
from huggingface_hub import InferenceClient

from support.served import Server, serve

PROMPT = "warm analog synth"
SECONDS = 3  # ElevenLabs' shortest


@pytest.fixture(scope="module")
def real_server(demo_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), checkpoints_dir=demo_checkpoints, offline=True) as running:
        yield running


def from_openai(url: str, seed: int) -> bytes:
    options = {"seconds": SECONDS, "seed": seed}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        speech = client.audio.speech
        return speech.create(model="demo", voice="", input=PROMPT, response_format="wav", extra_body=options).content


def from_elevenlabs(url: str, seed: int) -> bytes:
    with httpx.Client(timeout=60) as http:
        music = ElevenLabs(base_url=url, api_key="none", httpx_client=http).music
        plan = {"prompt": PROMPT, "music_length_ms": 1000 * SECONDS, "model_id": "demo", "seed": seed}
        return b"".join(music.compose(**plan, output_format="wav"))


def from_hugging_face(url: str, seed: int) -> bytes:
    client = InferenceClient(base_url=f"{url}/hf/demo", token="none")
    return client.text_to_speech(PROMPT, extra_body={"duration": SECONDS, "seed": seed, "output_format": "wav"})


def from_replicate(url: str, seed: int) -> bytes:
    with httpx.HTTPTransport() as transport:
        client = replicate.Client(api_token="none", base_url=url, transport=transport)
        given = {"prompt": PROMPT, "duration": SECONDS, "seed": seed, "model_version": "demo", "output_format": "wav"}
        output = client.run("meta/musicgen", input=given)
        return bytes(output.read())


@pytest.mark.parametrize("make", [from_openai, from_elevenlabs, from_hugging_face, from_replicate])
def test_a_client_gets_the_audio_of_generate(make: Callable[[str, int], bytes], real_server: Server) -> None:
    seed = len(make.__name__)  # another one for each client, so that no result comes from the cache
    samples, sample_rate = soundfile.read(io.BytesIO(make(real_server.url, seed)))
    assert (len(samples), sample_rate) == (SECONDS * 32_000, 32_000)
    fields = {"prompt": PROMPT, "model_size": "demo", "duration": SECONDS, "seed": seed}
    made = real_server.post("/generate", json=fields).json()
    expected, _ = soundfile.read(io.BytesIO(real_server.get(made["audio_url"]).content))
    np.testing.assert_array_equal(samples, expected)
