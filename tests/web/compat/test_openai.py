"""OpenAI's unmodified Python client makes music with this server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.web.compat.openai import MUSIC
from support.documents import section
from support.fakes import FakeEngine
from support.http import fake_app
from support.keys import ENVIRONMENT_KEY
from support.served import Server

ONE_SECOND = {"seconds": 1}


@pytest.fixture(scope="module")
def connect(server: Server) -> Iterator[Callable[[str], openai.OpenAI]]:
    clients: list[openai.OpenAI] = []

    def connect(key: str) -> openai.OpenAI:
        clients.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def openai_client(connect: Callable[[str], openai.OpenAI]) -> openai.OpenAI:
    return connect(ENVIRONMENT_KEY)


@pytest.mark.parametrize(
    ("response_format", "sample_rate"), [("mp3", 32_000), ("opus", 48_000), ("flac", 32_000), ("wav", 32_000)]
)
def test_speech_is_music_in_each_format(openai_client: openai.OpenAI, response_format: str, sample_rate: int) -> None:
    audio = openai_client.audio.speech.create(
        model="demo", voice="alloy", input="cello", response_format=response_format, extra_body=ONE_SECOND
    ).content
    about = soundfile.info(io.BytesIO(audio))
    assert (about.samplerate, about.duration) == (sample_rate, pytest.approx(1, abs=0.1))


def test_pcm_is_mono_at_24_khz(openai_client: openai.OpenAI) -> None:
    audio = openai_client.audio.speech.create(
        model="demo", voice="alloy", input="cello", response_format="pcm", extra_body=ONE_SECOND
    ).content
    assert len(audio) == 2 * 24_000


def test_aac_is_a_stream_of_frames(openai_client: openai.OpenAI) -> None:
    audio = openai_client.audio.speech.create(
        model="demo", voice="alloy", input="cello", response_format="aac", extra_body=ONE_SECOND
    ).content
    assert audio[:2] == b"\xff\xf1"


def test_audio_is_streamed_while_it_is_generated(openai_client: openai.OpenAI, hold: Path) -> None:
    with openai_client.audio.speech.with_streaming_response.create(
        model="demo",
        voice="",
        input="hold after 5",
        response_format="wav",
        stream_format="audio",
        extra_body=ONE_SECOND,
    ) as response:
        pieces = response.iter_bytes(1000)
        first = next(pieces)
        hold.unlink()
        audio = first + b"".join(pieces)
    assert soundfile.info(io.BytesIO(audio)).duration == 1


def test_the_list_has_the_models_of_the_server(openai_client: openai.OpenAI) -> None:
    models = {model.id: model.owned_by for model in openai_client.models.list()}
    assert models["small"] == "facebook"
    assert models["demo"] == "local"
    assert openai_client.models.retrieve("musicgen-medium").id == "medium"


def test_a_wrong_key_is_an_authentication_error(connect: Callable[[str], openai.OpenAI]) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        connect("wrong").audio.speech.create(model="demo", voice="alloy", input="cello")
    assert raised.value.code == "invalid_api_key"


def test_a_limit_is_a_rate_limit_error(connect: Callable[[str], openai.OpenAI], spent_key: str) -> None:
    with pytest.raises(openai.RateLimitError) as raised:
        connect(spent_key).audio.speech.create(model="demo", voice="alloy", input="cello", extra_body=ONE_SECOND)
    assert raised.value.code == "rate_limited"
    assert int(raised.value.response.headers["Retry-After"]) > 0


def test_a_refused_prompt_has_a_suggestion(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client.audio.speech.create(model="demo", voice="alloy", input="", instructions="kill yourself")
    assert raised.value.code == "content_policy_violation"
    assert raised.value.body["suggestion"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"seconds": 900}, "seconds"),
        ({"seconds": 1, "audio_length": 1}, "audio_length"),
        ({"top_k": "many"}, "top_k"),
        ({"speed": 2}, "speed"),
        ({"instructions": ""}, "instructions"),
    ],
)
def test_a_bad_field_is_named(openai_client: openai.OpenAI, body: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client.audio.speech.create(model="demo", voice="alloy", input="cello", extra_body=body)
    assert raised.value.param == param
    assert raised.value.body["message"].startswith(param)


def test_an_unknown_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        openai_client.audio.speech.create(model="tts-1", voice="alloy", input="cello")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_the_example_in_the_documentation_works(run_example: Callable[[str], None], tmp_path: Path) -> None:
    run_example("OpenAI")
    assert soundfile.info(tmp_path / "beat.mp3").duration == pytest.approx(2, abs=0.1)


def test_the_documentation_names_every_field() -> None:
    text = section("docs/compatibility.md", "OpenAI")
    names = {*MUSIC.fields, *MUSIC.accepted, "instructions"}
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("route", ["music", "generate", "speech"])
def test_all_routes_give_the_audio_of_generate(client: FlaskClient, engine: FakeEngine, route: str) -> None:
    body = {"prompt": "cello", "model": "facebook/musicgen-small", "duration": 1, "guidance": 4, "seed": 5}
    response = client.post(f"/v1/audio/{route}", json=body | {"top_k": 9, "voice": "x", "seconds": None})
    assert response.status_code == 200
    assert response.mimetype == ("audio/mpeg" if route == "speech" else "audio/wav")
    assert response.headers["X-Audio-Seed"] == "5"
    params = engine.submitted[0].params
    assert (params.description, params.model, params.duration_seconds) == ("cello", "small", 1)
    assert (params.cfg_coef, params.top_k, params.seed) == (4, 9, 5)


def test_a_repeated_idempotency_key_gives_the_same_audio(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"input": "cello", "seconds": 1, "response_format": "pcm"}
    first, second = (
        client.post("/v1/audio/music", json=body, headers={"Idempotency-Key": "one"}, buffered=True) for _ in range(2)
    )
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.headers["X-Audio-Seed"] == second.headers["X-Audio-Seed"]
    assert first.get_data() == second.get_data()
    assert len(engine.submitted) == 1


def test_a_setting_turns_the_family_off(tmp_path: Path) -> None:
    client = fake_app(tmp_path, compat_openai=False).test_client()
    assert client.post("/v1/audio/music", json={"input": "cello"}).status_code == 404
    assert client.get("/v1/models").status_code == 404
