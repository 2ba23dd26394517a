"""The main job, as clients do it: real gunicorn, real audiocraft on the demo checkpoints, real ffmpeg."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from support.served import Server, serve, wait_until

FRAME_SECONDS = 0.02
DEMO = {"prompt": "warm analog synth arpeggio", "model_size": "demo"}


@pytest.fixture(scope="module", params=["batching", "plain"])
def server(
    request: pytest.FixtureRequest, demo_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    with serve(directory, checkpoints_dir=demo_checkpoints, offline=True, engine=request.param, threads=64) as running:
        yield running


def fetch(server: Server, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """Generate with the demo model; return answer and file."""
    response = server.post("/generate", json=DEMO | fields, timeout=120)
    assert response.status_code == 200, response.text
    answer = response.json()
    if "audio" in answer:
        return answer, base64.b64decode(answer["audio"], validate=True)
    return answer, server.get(answer["audio_url"]).content


@pytest.mark.parametrize("return_type", ["url", "base64"])
@pytest.mark.parametrize("output_format", ["wav", "mp3", "ogg"])
def test_text_becomes_audio_of_the_right_length(server: Server, output_format: str, return_type: str) -> None:
    answer, audio = fetch(server, duration=1.5, output_format=output_format, return_type=return_type)
    samples, sample_rate = soundfile.read(io.BytesIO(audio))
    assert sample_rate == answer["sample_rate"] == 32_000
    assert abs(answer["duration"] - 1.5) <= FRAME_SECONDS
    padding_seconds = 0.08 if output_format == "mp3" else 0  # of the encoder, two frames of 1,152 samples and its delay
    assert abs(len(samples) / sample_rate - 1.5) <= FRAME_SECONDS + padding_seconds
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() > 0
    assert answer["model"] == "demo"
    assert answer["revision"]


def test_text_and_an_uploaded_mp3_become_audio(server: Server) -> None:
    tune = io.BytesIO()
    notes = np.concatenate([np.sin(np.arange(22_050) * 2 * np.pi * f / 44_100) for f in (262, 330, 392, 523)])
    soundfile.write(tune, 0.3 * notes, 44_100, format="MP3")
    response = server.post(
        "/generate-with-melody",
        data={"prompt": "string quartet", "model_size": "demo", "duration": "1.2", "output_format": "mp3"},
        files={"melody": ("tune.mp3", tune.getvalue())},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == "demo-melody"
    assert abs(answer["duration"] - 1.2) <= FRAME_SECONDS
    audio, sample_rate = soundfile.read(io.BytesIO(server.get(answer["audio_url"]).content))
    assert sample_rate == 32_000
    assert len(audio) > 32_000
    assert {"demo", "demo-melody"} <= set(server.get("/health").json()["models_loaded"])


def test_a_seed_makes_the_same_audio_again_and_a_drawn_one_is_told(server: Server) -> None:
    drawn, first = fetch(server, duration=1, return_type="base64")
    _, again = fetch(server, duration=1, return_type="base64", seed=drawn["seed"])
    _, other = fetch(server, duration=1, return_type="base64", seed=drawn["seed"] + 1)
    assert first == again
    assert first != other


def test_requests_at_once_each_get_their_own_parameters(server: Server) -> None:
    wanted = [{"duration": 1 + n / 2, "temperature": 0.5 + n / 4, "seed": n, "return_type": "base64"} for n in range(4)]
    alone = [fetch(server, **fields) for fields in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda fields: fetch(server, **fields), wanted))
    for fields, (answer, audio), (_, audio_alone) in zip(wanted, together, alone, strict=True):
        assert abs(answer["duration"] - fields["duration"]) <= FRAME_SECONDS
        assert audio == audio_alone  # so the temperature is its own, and the company leaves no trace
        assert answer["seed"] == fields["seed"]


def test_a_client_that_leaves_stops_a_real_generation(server: Server) -> None:
    fetch(server, duration=1)  # loaded
    body = json.dumps(DEMO | {"duration": 30}).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = server.connect()
    connection.sendall(head.encode() + body)
    wait_until(lambda: server.num_running() == 1)
    connection.close()
    left = time.monotonic()
    wait_until(lambda: server.num_running() == 0)
    assert time.monotonic() - left < 2


def test_a_model_that_cannot_be_had_is_503_and_the_service_stays_healthy(server: Server) -> None:
    response = server.post("/generate", json={"prompt": "solo cello", "model_size": "large", "duration": 1})
    assert (response.status_code, response.json()["code"]) == (503, "model_unavailable")
    assert "Retry-After" in response.headers
    assert server.get("/ready").status_code == 200
    fetch(server, duration=1)


def test_models_say_what_is_loaded(server: Server) -> None:
    fetch(server, duration=1)
    models = {model["name"]: model for model in server.get("/models").json()["models"]}
    assert models["demo"]["loaded"]
    assert not models["large"]["loaded"]
    assert server.get("/health").json()["device"] in ("cpu", "cuda", "mps")
