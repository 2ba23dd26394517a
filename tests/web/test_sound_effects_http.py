"""Models of sound effects over HTTP: what the list of models says, which controls are refused, and their defaults."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.config import Config
from audiocraft_api.factory import create_app
from audiocraft_api.web.services import services_of
from support import audiogen
from support.fakes import FakeEngine
from support.http import assert_error, melody_file
from support.live import playing
from support.live_client import START, LiveClient

AUDIOGEN = {"prompt": "dog barking in the distance", "model_size": "audiogen-medium"}


def submitted(client: FlaskClient, **fields: Any) -> Any:
    response = client.post("/generate-async", json=AUDIOGEN | fields)
    assert response.status_code == 202, response.json
    service = services_of(client.application).tasks.service
    task = service.get(response.json["task_id"])
    while not task.is_final:
        task = service.wait_for_change(task, 1.0)
    return client.get(f"/tasks/{task.id}").json["result"]


def test_the_list_of_models_tells_music_from_sound_effects(client: FlaskClient) -> None:
    models = {model["name"]: model for model in client.get("/models").json["models"]}
    assert {name for name, model in models.items() if model["kind"] != "music"} == {"audiogen-medium"}
    audiogen_medium = models["audiogen-medium"]
    assert audiogen_medium["kind"] == "sound_effects"
    assert audiogen_medium["checkpoint"] == "facebook/audiogen-medium"
    assert audiogen_medium["sample_rate"] == 16_000
    assert audiogen_medium["licence"] == "CC-BY-NC-4.0"
    controls = audiogen_medium["controls"]
    assert controls["extend_stride"] == {"minimum": 1.0, "exclusive_maximum": 10.0, "default": 2.0}
    assert controls["continuation"] == {"minimum": 0.1, "exclusive_maximum": 10.0, "melody": False}
    assert (controls["bpm"], controls["key"], controls["time_signature"]) == (None, None, None)


def test_the_stride_of_the_model_is_the_default(client: FlaskClient, engine: FakeEngine) -> None:
    recipes = [submitted(client, duration=12)["recipe"], submitted(client, duration=12, extend_stride=5)["recipe"]]
    assert [request.params.extend_stride_seconds for request in engine.submitted] == [2.0, 5.0]
    assert [recipe["extend_stride"] for recipe in recipes] == [2.0, 5.0]


def test_a_stride_as_long_as_the_window_is_refused_for_long_audio(client: FlaskClient) -> None:
    response = client.post("/generate-async", json=AUDIOGEN | {"duration": 10.5, "extend_stride": 10})
    assert "less than 10" in assert_error(response, 400, "invalid_request", "extend_stride")["error"]
    # Clients that send the default of music with every request.
    assert client.post("/generate-async", json=AUDIOGEN | {"duration": 5, "extend_stride": 18}).status_code == 202


@pytest.mark.parametrize("field", [{"bpm": 120}, {"key": "C major"}, {"time_signature": "4/4"}])
@pytest.mark.parametrize("route", ["/generate", "/generate-async", "/generate-stream"])
def test_musical_controls_are_refused(client: FlaskClient, route: str, field: dict[str, Any]) -> None:
    response = client.post(route, json=AUDIOGEN | field)
    assert "generates sound effects" in assert_error(response, 400, "invalid_request", *field)["error"]


def test_a_melody_is_refused(client: FlaskClient) -> None:
    form = AUDIOGEN | {"melody": (melody_file(), "melody.wav")}
    response = client.post("/generate-with-melody", data=form)
    assert "cannot follow a melody" in assert_error(response, 400, "invalid_request", "model_size")["error"]


def test_a_recording_longer_than_the_window_is_continued_from_its_end(client: FlaskClient, engine: FakeEngine) -> None:
    recording = io.BytesIO()
    soundfile.write(recording, [0.1, -0.1] * 96_000, 16_000, format="WAV")  # 12 s
    recording.seek(0)
    response = client.post("/generate-continuation", data=AUDIOGEN | {"duration": "5", "audio": (recording, "a.wav")})
    assert response.status_code == 200, response.json
    (request,) = engine.submitted
    assert request.params.audio_prompt.waveform.shape[1] == 8 * 16_000  # 10 s without the 2 s of a stride


@pytest.fixture(scope="module")
def real_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A client of an app with a small checkpoint in AudioGen's format."""
    directory = tmp_path_factory.mktemp("audiogen")
    config = Config(
        models_file=audiogen.write(directory),
        checkpoints_dir=directory / "none",
        audio_dir=directory / "audio",
        task_db=directory / "tasks.sqlite3",
        state_db=directory / "state.sqlite3",
        offline=True,
        device="cpu",
    )
    app = create_app(config)
    yield app.test_client()
    services_of(app).close()


@pytest.mark.parametrize("output_format", ["wav", "mp3", "opus", "flac"])
def test_sound_effects_longer_than_a_window_are_made_at_16_khz(real_client: FlaskClient, output_format: str) -> None:
    fields = {**AUDIOGEN, "model_size": audiogen.NAME, "duration": 11, "seed": 1, "output_format": output_format}
    response = real_client.post("/generate", json=fields)
    assert response.status_code == 200, response.json
    body = response.json
    assert body["sample_rate"] == (48_000 if output_format == "opus" else 16_000)
    assert body["duration"] == 11.0
    with real_client.get(body["audio_url"]) as audio:
        info = soundfile.info(io.BytesIO(audio.get_data()))
    assert info.samplerate == body["sample_rate"]
    assert abs(info.duration - 11.0) < 0.15


def test_a_streamed_sound_effect_has_the_rate_of_the_model(real_client: FlaskClient) -> None:
    fields = {**AUDIOGEN, "model_size": audiogen.NAME, "duration": 1.5, "seed": 1}
    response = real_client.post("/generate-stream", json=fields)
    with wave.open(io.BytesIO(response.get_data())) as audio:
        assert (audio.getframerate(), audio.getnframes()) == (16_000, 24_000)


def test_a_checkpoint_with_shorter_windows_than_declared_is_refused(tmp_path: Path) -> None:
    from audiocraft_api.core.errors import ModelUnavailable
    from audiocraft_api.model.catalog import Catalog
    from audiocraft_api.model.loading import load_model

    config = Config(models_file=audiogen.write(tmp_path, window_seconds=30, extend_stride_seconds=18), offline=True)
    catalog = Catalog(config)
    with pytest.raises(ModelUnavailable, match=r"declared with window_seconds=30, but .* 10 seconds"):
        load_model(catalog.get(audiogen.NAME), catalog, config)


def test_live_sessions_of_sound_effects_have_no_tempo_and_the_stride_of_the_model(tmp_path: Path) -> None:
    start = START | {"model_size": "audiogen-medium"}
    with playing(tmp_path) as (port, engine, _):
        refusal = LiveClient(port, start | {"bpm": 120}).receive()
        assert (refusal["type"], list(refusal["errors"])) == ("error", ["bpm"])
        client = LiveClient(port, start)
        client.receive_until("started")
        client.send({"type": "config", "key": "C major", "id": "k"})
        rejection = client.receive_until("rejected")
        assert (rejection["id"], list(rejection["errors"])) == ("k", ["key"])
        client.send({"type": "stop"})
        client.receive_all()
    assert engine.live[-1].params.extend_stride_seconds == 2.0
