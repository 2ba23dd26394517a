"""Errors have one format on every route, and no request body causes a server error."""

from __future__ import annotations

import gc
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api.core import errors
from audiocraft_api.core.errors import AudioCraftError, ClientDisconnected, LimitExceeded, Unavailable
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate


def post(client: FlaskClient, body: bytes, content_type: str = "application/json") -> Any:
    return client.post("/generate", data=body, content_type=content_type)


MALFORMED = {
    "empty": b"",
    "truncated": b'{"prompt": "a"',
    "trailing": b'{"prompt": "a"} {}',
    "not UTF-8": b'{"prompt": "\xe9"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "array": b'[{"prompt": "a"}]',
    "string": b'"prompt"',
    "null": b"null",
    "number": b"1",
    "NaN": b"NaN",
    "arrays 10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "objects 10,000 deep": b'{"prompt":' * 10_000 + b"1" + b"}" * 10_000,
    "unclosed depth": b"[" * 100_000,
    "100,000 digits": b'{"prompt": "a", "seed": ' + b"1" * 100_000 + b"}",
    "single quotes": b"{'prompt': 'a'}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_400(client: FlaskClient, body: bytes) -> None:
    assert_error(post(client, body), 400, "invalid_request")


NAMED = {
    "NaN": (b'{"prompt": "a", "duration": NaN}', "duration"),
    "Infinity": (b'{"prompt": "a", "temperature": Infinity}', "temperature"),
    "-Infinity": (b'{"prompt": "a", "seed": -Infinity}', "seed"),
    "1e309": (b'{"prompt": "a", "duration": 1e309}', "duration"),
    "NaN for an integer": (b'{"prompt": "a", "top_k": NaN}', "top_k"),
    "duplicate key": (b'{"prompt": "a", "duration": 1, "duration": 2}', "duration"),
    "lone surrogate": (b'{"prompt": "\\ud83c"}', "prompt"),
    "deep value": (b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", "prompt"),
    "object as a value": (b'{"prompt": {"text": "a"}}', "prompt"),
}


@pytest.mark.parametrize(("body", "field"), NAMED.values(), ids=NAMED)
def test_invalid_values_are_400_and_the_error_names_the_field(client: FlaskClient, body: bytes, field: str) -> None:
    assert_error(post(client, body), 400, "invalid_request", field)


def test_a_lone_surrogate_in_a_key_is_escaped_in_the_error(client: FlaskClient) -> None:
    assert_error(post(client, b'{"prompt": "a", "\\ud83c": 1}'), 400, "invalid_request", "\\ud83c")


@pytest.mark.parametrize("charset", ["latin-1", "utf-16", "no-such-charset"])
def test_json_in_another_charset_is_400(client: FlaskClient, charset: str) -> None:
    assert_error(post(client, b'{"prompt": "a"}', f"application/json; charset={charset}"), 400, "invalid_request")


def test_the_content_type_may_declare_utf_8(client: FlaskClient) -> None:
    body = json.dumps({"prompt": "é", "duration": 1}, ensure_ascii=False).encode()
    assert post(client, body, "application/json; charset=UTF-8").status_code == 200


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_content_type_other_than_json_is_415(client: FlaskClient, content_type: str) -> None:
    assert_error(post(client, b'{"prompt": "a"}', content_type), 415, "unsupported_media_type")


def test_a_content_type_other_than_a_form_is_415(client: FlaskClient) -> None:
    response = client.post("/generate-with-melody", json={"prompt": "a"})
    assert_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path", ["/index.html", "/generate/", "/nothing", "/audio/", "/docs/static/../docs.html", "/%00"]
)
def test_an_unknown_path_is_404(client: FlaskClient, path: str) -> None:
    assert_error(client.get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/generate", "/generate-with-melody"])
def test_another_method_is_405_and_lists_the_allowed_methods(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert_error(response, 405, "method_not_allowed")
    assert "POST" in response.headers["Allow"]


def test_a_body_of_unknown_length_is_411(client: FlaskClient) -> None:
    for path, content_type in [("/generate", "application/json"), ("/generate-with-melody", "multipart/form-data")]:
        response = client.post(
            path,
            input_stream=io.BytesIO(b"{}"),
            headers={"Transfer-Encoding": "chunked"},
            content_type=content_type,
        )
        assert_error(response, 411, "length_required")


def test_a_body_that_is_too_large_is_413(tmp_path: Path) -> None:
    client = fake_app(tmp_path, max_upload_bytes=4096, max_json_bytes=1024).test_client()
    assert_error(post(client, b" " * 1025), 413, "payload_too_large")
    melody = {"prompt": "a", "melody": (io.BytesIO(bytes(4096)), "melody.wav")}
    assert_error(client.post("/generate-with-melody", data=melody), 413, "payload_too_large")


def test_form_fields_that_are_too_long_or_too_many_are_413(client: FlaskClient) -> None:
    long = {"prompt": "a" * 300_000, "melody": (io.BytesIO(b"RIFF"), "melody.wav")}
    assert_error(client.post("/generate-with-melody", data=long), 413, "payload_too_large")
    many = {f"field{n}": "" for n in range(1000)} | {"melody": (io.BytesIO(b"RIFF"), "melody.wav")}
    assert_error(client.post("/generate-with-melody", data=many), 413, "payload_too_large")


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # by werkzeug, when an upload is aborted
def test_no_disk_space_for_a_large_upload_is_503(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    head = b'--b\r\nContent-Disposition: form-data; name="melody"; filename="melody.wav"\r\n\r\nRIFF'
    body = head + bytes(2**20) + b"\r\n--b--\r\n"
    response = client.post("/generate-with-melody", data=body, content_type="multipart/form-data; boundary=b")
    assert_error(response, 503, "storage_unavailable")
    gc.collect()


def all_errors(base: type[AudioCraftError] = AudioCraftError) -> list[type[AudioCraftError]]:
    return [base, *(error for child in base.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("kind", [kind for kind in all_errors() if kind.__module__ == errors.__name__])
def test_every_error_class_has_the_common_error_format(
    client: FlaskClient, engine: FakeEngine, kind: type[AudioCraftError]
) -> None:
    error = kind() if kind is ClientDisconnected else kind("The sentence.")
    engine.failure = error
    response = generate(client)
    body = assert_error(response, kind.status, kind.code, *getattr(error, "errors", {}))
    assert body["error"] == error.message
    assert ("Retry-After" in response.headers) == issubclass(kind, Unavailable | LimitExceeded)


def test_retry_after_is_rounded_up_to_whole_seconds(client: FlaskClient, engine: FakeEngine) -> None:
    engine.failure = Unavailable("Not now.", retry_after_seconds=2.1)
    assert generate(client).headers["Retry-After"] == "3"
    engine.failure = Unavailable("Not now.", retry_after_seconds=0.0)
    assert generate(client).headers["Retry-After"] == "1"


def test_a_full_queue_is_503_with_the_engines_own_retry_after(client: FlaskClient, engine: FakeEngine) -> None:
    engine.capacity = 0
    response = generate(client)
    assert_error(response, 503, "queue_full")
    assert response.headers["Retry-After"] == "7"


def test_the_cause_of_an_unexpected_error_is_logged_but_not_sent(
    client: FlaskClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("the secret path is /etc/secret")

    monkeypatch.setattr(engine, "submit", broken)
    with caplog.at_level(logging.ERROR):
        response = generate(client)
    body = assert_error(response, 500, "internal_error")
    assert "secret" not in json.dumps(body)
    assert "the secret path" in caplog.text
    monkeypatch.undo()
    assert generate(client).status_code == 200


def test_every_response_has_a_request_id_and_a_valid_one_is_adopted(client: FlaskClient) -> None:
    for path in ("/health", "/nothing", "/generate", "/docs"):
        first, second = (client.get(path, buffered=True).headers["X-Request-ID"] for _ in range(2))
        assert first != second
        assert (
            client.get(path, buffered=True, headers={"X-Request-ID": "a-1_b.c:D"}).headers["X-Request-ID"]
            == "a-1_b.c:D"
        )
    for wrong in ("", "with space", "a" * 129, "é", '"quoted"', "<script>"):
        assert client.get("/health", headers={"X-Request-ID": wrong}).headers["X-Request-ID"] != wrong


def test_the_request_id_is_in_the_body_of_a_generation(client: FlaskClient) -> None:
    response = client.post("/generate", json={"prompt": "a", "duration": 1}, headers={"X-Request-ID": "mine"})
    assert response.json["request_id"] == response.headers["X-Request-ID"] == "mine"


def test_errors_can_be_read_from_another_origin(client: FlaskClient) -> None:
    response = client.post("/generate", json={}, headers={"Origin": "https://app.example"})
    assert_error(response, 400, "invalid_request", "prompt")
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]


def test_only_configured_origins_are_allowed(tmp_path: Path) -> None:
    client = fake_app(tmp_path, cors_origins="https://app.example").test_client()
    allowed = client.get("/health", headers={"Origin": "https://app.example"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert (
        "Access-Control-Allow-Origin" not in client.get("/health", headers={"Origin": "https://evil.example"}).headers
    )
    closed = fake_app(tmp_path, cors_origins="").test_client()
    assert "Access-Control-Allow-Origin" not in closed.get("/health", headers={"Origin": "https://app.example"}).headers


def test_a_preflight_request_lists_allowed_methods_and_headers(client: FlaskClient) -> None:
    response = client.options(
        "/generate",
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Headers"] == "content-type"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
