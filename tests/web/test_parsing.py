"""Forms and JSON bodies as clients really send them."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from support.fakes import FakeEngine
from support.http import assert_error, melody_file

BOUNDARY = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nsolo cello\r\n'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", PART + b"--x--\r\n"),
        (BOUNDARY, PART.replace(b"--x", b"--y") + b"--y--\r\n"),
        (BOUNDARY, PART),
        (BOUNDARY, PART.replace(b"prompt", b"pr\xffmpt") + b"--x--\r\n"),
        (BOUNDARY, b"--x\r\nContent-Type: text/plain\r\n\r\nsolo cello\r\n--x--\r\n"),
    ],
    ids=["no boundary", "another boundary", "no end", "a header that is not UTF-8", "a part without a name"],
)
@pytest.mark.parametrize("path", ["/generate-with-melody", "/generate-with-melody-async"])
def test_a_form_that_cannot_be_read_is_refused_as_such(
    client: FlaskClient, path: str, content_type: str, body: bytes
) -> None:
    response = client.post(path, data=body, content_type=content_type)
    error = assert_error(response, 400, "invalid_request")
    assert error["error"].startswith("The body is not a valid multipart/form-data form.")


def test_a_part_whose_header_has_no_name_is_refused(client: FlaskClient) -> None:
    body = PART + b"--x\r\nContent-Disposition: form-data\r\n\r\nloud\r\n--x--\r\n"
    error = assert_error(client.post("/generate-with-melody", data=body, content_type=BOUNDARY), 400, "invalid_request")
    assert error["error"].startswith("A part of the form has no name.")


def test_empty_optional_form_fields_mean_the_default(client: FlaskClient, engine: FakeEngine) -> None:
    form = {"prompt": "solo cello", "duration": "", "seed": "", "model_size": "", "output_format": "", "top_p": ""}
    response = client.post("/generate-with-melody", data=form | {"melody": (melody_file(), "melody.wav")})
    assert response.status_code == 200, response.json
    params = engine.submitted[0].params
    assert (params.model, params.duration_seconds, params.top_p) == ("melody", 10.0, 0.0)


def test_an_empty_prompt_in_a_form_is_still_refused(client: FlaskClient) -> None:
    form = {"prompt": "", "melody": (melody_file(), "melody.wav")}
    assert_error(client.post("/generate-with-melody", data=form), 400, "invalid_request", "prompt")


@pytest.mark.parametrize("field", ["duration", "top_k", "seed"])
def test_digit_separators_are_not_part_of_a_number(client: FlaskClient, field: str) -> None:
    form: dict[str, Any] = {"prompt": "solo cello", "melody": (melody_file(), "melody.wav"), field: "1_0"}
    assert_error(client.post("/generate-with-melody", data=form), 400, "invalid_request", field)


def test_a_number_in_a_query_has_no_digit_separators(client: FlaskClient) -> None:
    assert_error(client.get("/tasks?limit=1_0"), 400, "invalid_request", "limit")


def test_a_byte_order_mark_before_json_is_accepted(client: FlaskClient) -> None:
    body = b'\xef\xbb\xbf{"prompt": "solo cello", "duration": 1}'
    response = client.post("/generate", data=body, content_type="application/json")
    assert response.status_code == 200, response.json
