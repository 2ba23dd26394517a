"""The HTTP contract: paths, fields, defaults, bounds and responses. The engine is a fake."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api import __version__
from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.web.services import services_of
from support.fakes import SAMPLE_RATE, FakeEngine
from support.http import assert_error, fake_app, generate, melody_file

COMMON_FIELDS = {
    "success",
    "generation_time",
    "format",
    "sample_rate",
    "duration",
    "seed",
    "model",
    "revision",
    "cached",
    "recipe",
    "request_id",
}


def generate_with_melody(client: FlaskClient, **fields: Any) -> Any:
    form = {"prompt": "solo cello", "duration": "1", "melody": (melody_file(), "melody.wav")} | fields
    return client.post("/generate-with-melody", data=form, content_type="multipart/form-data")


# --- GET /health, /ready, /models


def test_health_reports_version_models_device_kernels_and_queue(client: FlaskClient) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert response.json == {
        "status": "healthy",
        "version": __version__,
        "models_loaded": [],
        "device": "cpu",
        "cpu_kernels": "avx2",
        "queue": {"waiting": 0, "running": 0},
    }


def test_health_counts_running_requests(client: FlaskClient, engine: FakeEngine) -> None:
    engine.open_gate.clear()
    services_of(client.application).generation.stream(GenerateCommand("solo cello", "small", 1.0))
    assert client.get("/health").json["queue"] == {"waiting": 0, "running": 1}
    engine.open_gate.set()


def test_ready_is_200_when_idle_and_when_busy(client: FlaskClient, engine: FakeEngine) -> None:
    assert client.get("/ready").json == {"status": "ready"}
    engine.capacity = 0
    assert client.get("/ready").status_code == 200


def test_ready_is_503_when_the_engine_has_died(client: FlaskClient, engine: FakeEngine) -> None:
    engine.is_alive = False
    response = client.get("/ready")
    assert_error(response, 503, "engine_died")
    assert client.get("/health").status_code == 200


def test_a_closed_service_is_alive_but_not_ready_and_refuses_requests(client: FlaskClient) -> None:
    services_of(client.application).close()
    assert client.get("/health").status_code == 200
    assert "Retry-After" in client.get("/ready").headers
    assert_error(client.get("/ready"), 503, "shutting_down")
    assert_error(generate(client), 503, "shutting_down")


def test_models_lists_capabilities_and_licenses(client: FlaskClient) -> None:
    models = {model["name"]: model for model in client.get("/models").json["models"]}
    assert {"small", "medium", "large", "melody", "melody-large", "demo"} <= set(models)
    assert models["small"] | {"description": ""} == {
        "name": "small",
        "description": "",
        "checkpoint": "facebook/musicgen-small",
        "revision": None,
        "loaded_revision": None,
        "sha256": None,
        "codec_sha256": None,
        "kind": "music",
        "text": True,
        "melody": False,
        "channels": 1,
        "sample_rate": 32_000,
        "max_duration": 30.0,
        "loaded": False,
        "state": "unloaded",
        "error": None,
        "progress": None,
        "licence": "CC-BY-NC-4.0",
        "commercial_use": False,
        "allowed": True,
        "controls": {
            "duration": {"minimum": 1.0, "maximum": 300.0, "synchronous_maximum": 30.0},
            "extend_stride": {"minimum": 1.0, "exclusive_maximum": 30.0, "default": 18.0},
            "negative_prompt": {"max_characters": 2000},
            "segments": {"maximum": 32, "minimum_duration": 0.1, "changes_at": "frame"},
            "n": {"minimum": 1, "maximum": 8, "maximum_total_duration": 300.0},
            "continuation": {"minimum": 0.1, "exclusive_maximum": 30.0, "melody": False},
            "bpm": {"minimum": 40, "maximum": 240},
            "key": {"pattern": "^[A-G](#|b)? (major|minor)$"},
            "time_signature": {"values": ["4/4", "3/4", "6/8"]},
            "loudness": {"minimum": -30.0, "maximum": -8.0, "maximum_true_peak": -1.0},
            "fade_in": {"maximum": 30.0},
            "fade_out": {"maximum": 30.0},
            "trim_silence": {"threshold": -60.0},
            "loop": {
                "minimum_bars": 1,
                "maximum_bars": 32,
                "maximum_candidates": 8,
                "formats": ["wav", "wav24", "wav32f", "flac", "ogg"],
            },
            "stems": {"names": ["drums", "bass", "other", "vocals"]},
            "notes": None,
            "live": {"max_prompts": 4, "max_transition": 30.0, "lead": 1.5, "max_duration": 1800.0},
        },
    }
    assert models["melody"]["melody"]
    assert "Small demo model" in models["demo"]["description"]
    assert "Small demo model" in models["demo-melody"]["description"]


# --- POST /generate


def test_a_url_response_has_the_contract_fields(client: FlaskClient) -> None:
    body = generate(client, output_format="mp3").json
    assert set(body) == COMMON_FIELDS | {"audio_url"}
    assert body["success"] is True
    assert 0 < body["generation_time"] < 60
    assert body["audio_url"].startswith("/audio/")
    assert body["audio_url"].endswith(".mp3")
    assert (body["format"], body["sample_rate"], body["duration"]) == ("mp3", SAMPLE_RATE, 1.0)


def test_a_base64_response_contains_the_file_and_nothing_is_stored(client: FlaskClient, tmp_path: Path) -> None:
    body = generate(client, return_type="base64", duration=1.5).json
    assert set(body) == COMMON_FIELDS | {"audio"}
    with wave.open(io.BytesIO(base64.b64decode(body["audio"], validate=True))) as audio:
        assert (audio.getframerate(), audio.getnframes()) == (SAMPLE_RATE, 48_000)
    assert not list((tmp_path / "audio").glob("*"))


def test_defaults_match_the_contract(client: FlaskClient, engine: FakeEngine) -> None:
    body = client.post("/generate", json={"prompt": "solo cello"}).json
    params = engine.submitted[0].params
    assert (params.model, params.duration_seconds, params.temperature) == ("small", 5.0, 1.0)
    assert (params.top_k, params.top_p, params.cfg_coef, params.melody) == (250, 0.0, 3.0, None)
    assert params.description == "solo cello"
    assert body["format"] == "wav"
    assert "audio_url" in body
    assert body["seed"] == params.seed


def test_every_field_reaches_the_engine(client: FlaskClient, engine: FakeEngine) -> None:
    fields = {"model_size": "medium", "duration": 2.5, "temperature": 0.5, "top_k": 7, "top_p": 0.9}
    body = generate(client, **fields, cfg_coef=4.5, seed=11, output_format="ogg", return_type="url").json
    params = engine.submitted[0].params
    assert (params.model, params.duration_seconds, params.temperature, params.top_k) == ("medium", 2.5, 0.5, 7)
    assert (params.top_p, params.cfg_coef, params.seed) == (0.9, 4.5, 11)
    assert (body["model"], body["seed"], body["format"]) == ("medium", 11, "ogg")


ACCEPTED = [
    ("prompt", "a"),
    ("prompt", "é" * 2000),
    ("prompt", "\U0001f3b8 guitar \u202e \u0000"),
    ("duration", 1),
    ("duration", 1.0),
    ("duration", 30),
    ("temperature", 0.1),
    ("temperature", 2),
    ("top_k", 0),
    ("top_k", 2048),
    ("top_k", 250.0),
    ("top_p", 0),
    ("top_p", 1),
    ("cfg_coef", 0),
    ("cfg_coef", 20),
    ("seed", 0),
    ("seed", 2**53 - 1),
    ("seed", None),
    ("return_type", "base64"),
    *(("output_format", name) for name in FORMATS),
]


@pytest.mark.parametrize(("field", "value"), ACCEPTED)
def test_values_at_the_bounds_are_accepted(client: FlaskClient, field: str, value: Any) -> None:
    response = generate(client, **{field: value})
    assert response.status_code == 200, response.get_data()


REFUSED = [
    ("prompt", ""),
    ("prompt", "   \n\t\u3000"),
    ("prompt", "a" * 2001),
    ("prompt", 5),
    ("prompt", None),
    ("prompt", ["a"]),
    ("model_size", "huge"),
    ("model_size", "../small"),
    ("model_size", "s" * 100),
    ("model_size", 1),
    ("model_size", None),
    ("duration", 0.99),
    ("duration", 30.01),
    ("duration", -1),
    ("duration", "5"),
    ("duration", True),
    ("duration", None),
    ("duration", 10**400),
    ("temperature", 0.09),
    ("temperature", 2.01),
    ("temperature", 0),
    ("temperature", False),
    ("top_k", -1),
    ("top_k", 2049),
    ("top_k", 2.5),
    ("top_k", "250"),
    ("top_k", True),
    ("top_p", -0.01),
    ("top_p", 1.01),
    ("top_p", "0"),
    ("cfg_coef", -0.1),
    ("cfg_coef", 20.1),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 1.5),
    ("seed", "1"),
    ("seed", True),
    ("output_format", "aiff"),
    ("output_format", "WAV"),
    ("output_format", None),
    ("output_format", ["wav"]),
    ("return_type", "file"),
    ("return_type", None),
    ("batch_size", 4),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_errors_name_the_field_that_is_out_of_bounds(
    client: FlaskClient, engine: FakeEngine, field: str, value: Any
) -> None:
    body = assert_error(generate(client, **{field: value}), 400, "invalid_request", field)
    assert field in body["error"] or field == "model_size"
    assert not engine.submitted


def test_a_missing_prompt_is_named_in_the_error(client: FlaskClient) -> None:
    body = assert_error(client.post("/generate", json={}), 400, "invalid_request", "prompt")
    assert body["error"] == "prompt is required."


def test_the_error_for_an_unknown_model_lists_the_valid_models(client: FlaskClient) -> None:
    assert "small, medium, large" in generate(client, model_size="huge").json["error"]


def test_one_error_names_all_invalid_fields(client: FlaskClient) -> None:
    response = generate(client, duration=0, top_k=-1, temperature="1", loudness=3)
    assert_error(response, 400, "invalid_request", "duration", "top_k", "temperature", "loudness")


def test_ten_thousand_unknown_fields_get_a_short_error(client: FlaskClient) -> None:
    response = client.post("/generate", json={"prompt": "a"} | {f"field{n}": n for n in range(10_000)})
    assert response.status_code == 400
    assert len(response.get_data()) < 5000


def test_the_duration_limit_of_a_model_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text('{"short": {"checkpoint": "org/short", "max_duration_seconds": 10}}')
    client = fake_app(tmp_path, models_file=tmp_path / "models.json").test_client()
    assert generate(client, model_size="short", duration=10).status_code == 200
    body = assert_error(generate(client, model_size="short", duration=10.5), 400, "invalid_request", "duration")
    assert "at most 10" in body["error"]


# --- POST /generate-with-melody


def test_melody_defaults_match_the_contract(client: FlaskClient, engine: FakeEngine) -> None:
    form = {"prompt": "solo cello", "melody": (melody_file(), "melody.wav")}
    body = client.post("/generate-with-melody", data=form).json
    params = engine.submitted[0].params
    assert (params.model, params.duration_seconds) == ("melody", 10.0)
    assert (params.temperature, params.top_k, params.top_p, params.cfg_coef) == (1.0, 250, 0.0, 3.0)
    assert params.melody is not None
    assert (params.melody.waveform.shape, params.melody.sample_rate) == ((1, 16_000), 16_000)
    assert (body["duration"], body["model"]) == (10.0, "melody")


def test_melody_form_fields_are_parsed_from_text(client: FlaskClient, engine: FakeEngine) -> None:
    fields = {"model_size": "large", "duration": "1.5", "temperature": "0.5", "top_k": "7", "top_p": "0.9"}
    body = generate_with_melody(
        client, **fields, cfg_coef="4.5", seed="11", output_format="ogg", return_type="base64"
    ).json
    params = engine.submitted[0].params
    assert (params.model, params.duration_seconds, params.temperature, params.top_k) == ("melody-large", 1.5, 0.5, 7)
    assert (params.top_p, params.cfg_coef, params.seed) == (0.9, 4.5, 11)
    assert set(body) == COMMON_FIELDS | {"audio"}


@pytest.mark.parametrize(
    ("size", "model"), [("medium", "melody"), ("large", "melody-large"), ("demo", "demo-melody"), ("melody", "melody")]
)
def test_public_sizes_map_to_the_melody_checkpoints(
    client: FlaskClient, engine: FakeEngine, size: str, model: str
) -> None:
    assert generate_with_melody(client, model_size=size).status_code == 200
    assert engine.submitted[0].params.model == model


def test_the_error_for_a_size_without_melody_support_lists_the_sizes_with_it(client: FlaskClient) -> None:
    body = assert_error(generate_with_melody(client, model_size="small"), 400, "invalid_request", "model_size")
    assert "'small'" in body["error"]
    assert "medium, large" in body["error"]


@pytest.mark.parametrize("format", ["WAV", "MP3", "OGG", "FLAC", "AIFF", "CAF"])
def test_the_content_of_a_melody_decides_its_format(client: FlaskClient, format: str) -> None:
    assert generate_with_melody(client, melody=(melody_file(format), "no-such.extension")).status_code == 200


def test_a_playlist_as_a_melody_is_refused_as_what_it_is(client: FlaskClient) -> None:
    playlist = (io.BytesIO(b"#EXTM3U\nhttp://localhost/a.mp3\n"), "melody.mp3")
    body = assert_error(generate_with_melody(client, melody=playlist), 400, "invalid_melody", "melody")
    assert body["error"] == "This file is a playlist, not audio. Upload the recording itself."


@pytest.mark.parametrize(
    "request_arguments",
    [
        {},
        {"data": {"prompt": "solo cello"}},
        {"data": {"prompt": "solo cello"}, "content_type": "multipart/form-data"},
        {"data": {"prompt": "solo cello", "melody": "a text"}, "content_type": "multipart/form-data"},
        {"data": {"prompt": "solo cello", "melody": (io.BytesIO(), "")}, "content_type": "multipart/form-data"},
        {"data": {"prompt": "", "duration": "x"}, "content_type": "multipart/form-data"},
    ],
)
def test_a_missing_melody_file_gets_the_sentence_of_the_contract(
    client: FlaskClient, request_arguments: dict[str, Any]
) -> None:
    body = assert_error(client.post("/generate-with-melody", **request_arguments), 400, "invalid_request", "melody")
    assert body["error"] == "No melody file provided"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", " "),
        ("duration", "31"),
        ("duration", "nan"),
        ("duration", "1e309"),
        ("duration", "true"),
        ("top_k", "2.5"),
        ("seed", "1e3000"),
        ("seed", "1" * 5000),
        ("output_format", "aiff"),
        ("loudness", "3"),
        ("duration", ["1", "2"]),
        ("melody", [(io.BytesIO(b"1"), "a.wav"), (io.BytesIO(b"2"), "b.wav")]),
        ("other", (io.BytesIO(b"1"), "a.wav")),
        ("prompt", (io.BytesIO(b"solo cello"), "prompt.txt")),
    ],
)
def test_errors_name_the_invalid_melody_field(client: FlaskClient, field: str, value: Any) -> None:
    assert_error(generate_with_melody(client, **{field: value}), 400, "invalid_request", field)


def test_a_file_that_is_not_audio_is_refused(client: FlaskClient) -> None:
    response = generate_with_melody(
        client, melody=(io.BytesIO(b"#EXTM3U\nhttp://example.org/melody.wav"), "melody.wav")
    )
    assert_error(response, 400, "invalid_melody", "melody")


# --- GET /audio/<filename>


@pytest.mark.parametrize("output_format", FORMATS)
def test_audio_is_a_cacheable_attachment_with_the_right_media_type(client: FlaskClient, output_format: str) -> None:
    url = generate(client, output_format=output_format).json["audio_url"]
    response = client.get(url, buffered=True)
    assert response.status_code == 200
    assert response.content_type == FORMATS[output_format].media_type
    assert response.headers["Content-Disposition"] == f"attachment; filename={url.removeprefix('/audio/')}"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "immutable" in response.headers["Cache-Control"]
    assert response.content_length == len(response.get_data())
    assert response.headers["ETag"]


def test_audio_supports_range_requests(client: FlaskClient) -> None:
    url = generate(client).json["audio_url"]
    whole = client.get(url, buffered=True).get_data()
    for wanted, start, end in [("0-9", 0, 10), ("100-", 100, len(whole)), ("-5", len(whole) - 5, len(whole))]:
        response = client.get(url, buffered=True, headers={"Range": f"bytes={wanted}"})
        assert response.status_code == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(whole)}"
        assert response.get_data() == whole[start:end]
    response = client.get(url, buffered=True, headers={"Range": "bytes=9999999-"})
    assert_error(response, 416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{len(whole)}"


@pytest.mark.parametrize("wanted", ["bytes=0-9,20-29", "samples=0-9", "bytes=nine", "bytes=", "", "bytes=9-0-9"])
def test_an_unsupported_range_gets_the_whole_file(client: FlaskClient, wanted: str) -> None:
    url = generate(client).json["audio_url"]
    response = client.get(url, buffered=True, headers={"Range": wanted})
    assert (response.status_code, response.get_data()) == (200, client.get(url, buffered=True).get_data())


def test_audio_that_has_not_changed_is_304_and_head_has_no_body(client: FlaskClient) -> None:
    url = generate(client).json["audio_url"]
    head = client.head(url)
    assert (head.status_code, head.get_data()) == (200, b"")
    assert head.content_length == len(client.get(url, buffered=True).get_data()) > 64_044
    response = client.get(url, buffered=True, headers={"If-None-Match": head.headers["ETag"]})
    assert (response.status_code, response.get_data()) == (304, b"")


def test_every_way_to_read_a_file_releases_its_lease(tmp_path: Path) -> None:
    client = fake_app(tmp_path).test_client()
    store = services_of(client.application).store
    url = generate(client).json["audio_url"]
    etag = client.head(url).headers["ETag"]
    client.get(url, buffered=True).get_data()
    client.get(url, buffered=True, headers={"Range": "bytes=0-9"}).get_data()
    client.get(url, buffered=True, headers={"Range": "bytes=9999999-"})
    client.get(url, buffered=True, headers={"If-None-Match": etag})
    assert not store._leases


@pytest.mark.parametrize(
    "filename",
    [
        "00000000-0000-4000-8000-000000000000.wav",
        "nothing.wav",
        "..%2f..%2fapp.py",
        "%2e%2e/app.py",
        "..\\app.py",
        "%00.wav",
        ".gitkeep",
        "a" * 5000,
    ],
)
def test_an_unknown_file_is_404_without_a_path(client: FlaskClient, tmp_path: Path, filename: str) -> None:
    body = assert_error(client.get(f"/audio/{filename}"), 404, "not_found")
    assert str(tmp_path) not in body["error"]


# --- HTML pages


def test_clients_that_prefer_json_get_links_in_place_of_the_page(client: FlaskClient) -> None:
    response = client.get("/", headers={"Accept": "application/json"})
    body = response.json
    assert body is not None
    assert (body.pop("name"), body.pop("version")) == ("AudioCraft API", __version__)
    expected = {"docs": "/docs", "openapi": "/openapi.json", "models": "/models", "health": "/health"}
    assert body == expected | {"generate": "/generate"}
    assert "Accept" in response.headers["Vary"]
    for accept in ("text/html,application/xhtml+xml,*/*;q=0.8", "*/*"):
        assert client.get("/", headers={"Accept": accept}, buffered=True).mimetype == "text/html"


def test_the_pages_load_nothing_from_elsewhere(client: FlaskClient) -> None:
    for path in ("/", "/docs"):
        response = client.get(path, buffered=True)
        assert response.status_code == 200
        assert response.mimetype == "text/html"
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert "//" not in response.get_data(as_text=True).replace("<!doctype", "")
    for asset in ("docs.js", "swagger_ui/swagger-ui-bundle.js", "swagger_ui/swagger-ui.css", "swagger_ui/LICENSE"):
        assert client.get(f"/docs/static/{asset}", buffered=True).status_code == 200
