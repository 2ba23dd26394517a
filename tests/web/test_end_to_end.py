"""Generation end to end: real gunicorn, real audiocraft with the demo checkpoints, real ffmpeg."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiocraft_api.engine.cpu.native.library import kernels_of, load_library
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
    """Generate with the demo model; return the JSON body and the audio file."""
    response = server.post("/generate", json=DEMO | fields, timeout=120)
    assert response.status_code == 200, response.text
    body = response.json()
    if "audio" in body:
        return body, base64.b64decode(body["audio"], validate=True)
    return body, server.get(body["audio_url"]).content


@pytest.mark.parametrize("return_type", ["url", "base64"])
@pytest.mark.parametrize("output_format", ["wav", "mp3", "ogg"])
def test_a_prompt_becomes_audio_of_the_right_length(server: Server, output_format: str, return_type: str) -> None:
    body, audio = fetch(server, duration=1.5, output_format=output_format, return_type=return_type)
    samples, sample_rate = soundfile.read(io.BytesIO(audio))
    assert sample_rate == body["sample_rate"] == 32_000
    assert abs(body["duration"] - 1.5) <= FRAME_SECONDS
    padding_seconds = 0.08 if output_format == "mp3" else 0  # two frames of 1,152 samples and the encoder's delay
    assert abs(len(samples) / sample_rate - 1.5) <= FRAME_SECONDS + padding_seconds
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() > 0
    assert body["model"] == "demo"
    assert body["revision"]


def test_a_prompt_and_an_uploaded_mp3_become_audio(server: Server) -> None:
    melody = io.BytesIO()
    notes = np.concatenate([np.sin(np.arange(22_050) * 2 * np.pi * f / 44_100) for f in (262, 330, 392, 523)])
    soundfile.write(melody, 0.3 * notes, 44_100, format="MP3")
    response = server.post(
        "/generate-with-melody",
        data={"prompt": "string quartet", "model_size": "demo", "duration": "1.2", "output_format": "mp3"},
        files={"melody": ("melody.mp3", melody.getvalue())},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["model"] == "demo-melody"
    assert abs(body["duration"] - 1.2) <= FRAME_SECONDS
    audio, sample_rate = soundfile.read(io.BytesIO(server.get(body["audio_url"]).content))
    assert sample_rate == 32_000
    assert len(audio) > 32_000
    assert {"demo", "demo-melody"} <= set(server.get("/health").json()["models_loaded"])


def test_the_reported_random_seed_reproduces_the_audio(server: Server) -> None:
    body, first = fetch(server, duration=1, return_type="base64")
    _, again = fetch(server, duration=1, return_type="base64", seed=body["seed"])
    _, other = fetch(server, duration=1, return_type="base64", seed=body["seed"] + 1)
    assert first == again
    assert first != other


def test_a_variation_is_what_its_recipe_gives_as_a_single_request(server: Server) -> None:
    body, _ = fetch(server, duration=1, n=2, seed=7, return_type="base64")
    fields = ("prompt", "duration", "temperature", "top_k", "top_p", "cfg_coef", "seed", "output_format")
    for variation in body["variations"]:
        recipe = {name: variation["recipe"][name] for name in fields}
        assert fetch(server, return_type="base64", **recipe)[0]["audio"] == variation["audio"]
    first, second = (variation["audio"] for variation in body["variations"])
    assert first != second


def test_a_result_is_continued_without_a_seam(server: Server) -> None:
    _, clip = fetch(server, duration=1, seed=7, return_type="base64", output_format="wav32f")
    form = DEMO | {"duration": "1", "seed": "8", "return_type": "base64", "output_format": "wav32f"}
    results = []
    for include_input in ("true", "false"):
        response = server.post(
            "/generate-continuation",
            data=form | {"include_input": include_input},
            files={"audio": ("clip.wav", clip)},
            timeout=120,
        )
        assert response.status_code == 200, response.text
        results.append(soundfile.read(io.BytesIO(base64.b64decode(response.json()["audio"])))[0])
    whole, new = results
    assert (len(whole), len(new)) == (64_000, 32_000)
    np.testing.assert_array_equal(whole[32_000:], new)


@pytest.mark.parametrize("num_links", [3, pytest.param(10, marks=pytest.mark.fault)])
def test_a_chain_of_continuations_keeps_what_it_has_and_equals_itself(server: Server, num_links: int) -> None:
    def link(seed: int, **fields: Any) -> dict[str, Any]:
        return fetch(server, duration=1, seed=seed, output_format="wav32f", **fields)[0]

    def samples(body: dict[str, Any]) -> Any:
        return soundfile.read(io.BytesIO(server.get(body["audio_url"]).content), dtype="float32")[0]

    first = link(1)
    chains = []
    for _ in range(2):
        body, chain = first, [samples(first)]
        for seed in range(2, 2 + num_links):
            body = link(seed, continue_from={"audio_url": body["audio_url"]})
            assert body["recipe"]["codes"]
            chain.append(samples(body))
        chains.append(chain)
    assert [len(audio) for audio in chains[0]] == [32_000 * (index + 1) for index in range(num_links + 1)]
    for one, other in zip(*chains, strict=True):
        np.testing.assert_array_equal(one, other)
    for before, after in pairwise(chains[0]):  # the codec hears a little ahead, so the end may change
        np.testing.assert_allclose(after[: len(before) - 3200], before[:-3200], atol=1e-5)


def test_concurrent_requests_each_use_their_own_parameters(server: Server) -> None:
    wanted = [{"duration": 1 + n / 2, "temperature": 0.5 + n / 4, "seed": n, "return_type": "base64"} for n in range(4)]
    alone = [fetch(server, **fields) for fields in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda fields: fetch(server, **fields), wanted))
    for fields, (body, audio), (_, audio_alone) in zip(wanted, together, alone, strict=True):
        assert abs(body["duration"] - fields["duration"]) <= FRAME_SECONDS
        assert audio == audio_alone  # with its own temperature, and unaffected by the rest of the batch
        assert body["seed"] == fields["seed"]


@pytest.mark.timing
def test_a_client_that_disconnects_stops_a_real_generation(server: Server) -> None:
    fetch(server, duration=1)  # loads the model
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


def test_an_unavailable_model_is_503_and_the_service_stays_healthy(server: Server) -> None:
    response = server.post("/generate", json={"prompt": "solo cello", "model_size": "large", "duration": 1})
    assert (response.status_code, response.json()["code"]) == (503, "model_unavailable")
    assert "Retry-After" in response.headers
    assert server.get("/ready").status_code == 200
    fetch(server, duration=1)


def test_models_reports_which_models_are_loaded(server: Server, request: pytest.FixtureRequest) -> None:
    fetch(server, duration=1)
    models = {model["name"]: model for model in server.get("/models").json()["models"]}
    assert models["demo"]["loaded"]
    assert not models["large"]["loaded"]
    health = server.get("/health").json()
    assert health["device"] in ("cpu", "cuda", "mps")
    of_engine = {"batching": kernels_of(load_library()), "plain": "pytorch"}
    on_cpu = of_engine[request.node.callspec.params["server"]]
    assert health["cpu_kernels"] == (on_cpu if health["device"] == "cpu" else None)
