"""The OpenAPI document is valid, matches the routes, and its examples work. The engine is a fake."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from flask.testing import FlaskClient
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from audiocraft_api.web.schemas.forms import MelodyRequest
from audiocraft_api.web.schemas.generation import GenerateRequest
from support.fakes import ShortEngine
from support.generated_requests import send_all
from support.http import fake_app, melody_file

PAGES = {
    "docs.static",
    "docs.index",
    "docs.docs",
    "docs.openapi",
    "docs.asyncapi",
}  # HTML pages, and the documents themselves
NUM_CASES = 75  # per route and mode


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json
    return found


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_the_document_describes_every_route(client: FlaskClient, document: dict[str, Any]) -> None:
    rules = client.application.url_map.iter_rules()
    routes = {
        (rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}"), method.lower())
        for rule in rules
        if rule.endpoint not in PAGES and not rule.endpoint.startswith("compat_")  # the contracts of other services
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes == {(path, method) for path, item in document["paths"].items() for method in item}


def test_every_documented_example_works(client: FlaskClient, document: dict[str, Any]) -> None:
    num_sent = 0
    for path, item in document["paths"].items():
        for media_type, content in item.get("post", {}).get("requestBody", {}).get("content", {}).items():
            for example in content.get("examples", {}).values():
                assert media_type == "application/json"
                response = client.post(path, json=example["value"], buffered=True)
                assert response.status_code in (200, 202), response.get_data()
                assert str(response.status_code) in item["post"]["responses"]
                num_sent += 1
    assert num_sent >= 3


def test_every_documented_default_is_accepted(client: FlaskClient, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    defaults = {
        name: {field: about["default"] for field, about in schemas[name]["properties"].items() if "default" in about}
        for name in (GenerateRequest.__name__, MelodyRequest.__name__)
    }
    assert defaults["GenerateRequest"]["duration"] == 5.0
    assert defaults["MelodyRequest"] | {"duration": 5.0, "model_size": "small"} == defaults["GenerateRequest"]
    assert client.post("/generate", json={"prompt": "a"} | defaults["GenerateRequest"]).status_code == 200
    form = {name: str(value) for name, value in defaults["MelodyRequest"].items() if value is not None}
    form |= {"prompt": "a", "melody": (melody_file(), "melody.wav")}
    assert client.post("/generate-with-melody", data=form).status_code == 200


def test_requests_are_closed_objects_and_models_are_listed(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("GenerateRequest", "MelodyRequest"):
        assert schemas[name]["additionalProperties"] is False
    assert {"small", "demo"} <= set(schemas["GenerateRequest"]["properties"]["model_size"]["enum"])
    melody_sizes = schemas["MelodyRequest"]["properties"]["model_size"]["enum"]
    assert {"medium", "large", "demo"} <= set(melody_sizes)
    assert "small" not in melody_sizes
    assert schemas["MelodyRequest"]["properties"]["melody"]["format"] == "binary"


def test_models_that_are_not_allowed_are_not_documented(tmp_path: Path) -> None:
    client = fake_app(tmp_path, allow_non_commercial=False).test_client()
    sizes = client.get("/openapi.json").json["components"]["schemas"]["GenerateRequest"]["properties"]["model_size"]
    assert sizes["enum"] == ["demo", "demo-melody", "demo-stereo"]
    assert client.post("/generate", json={"prompt": "a"}).status_code == 400


def make_consistent(body: dict[str, Any]) -> None:
    """Change what a schema allows and the server refuses, because a schema cannot express the rule."""
    body.pop("webhook_url", None)  # which addresses are allowed
    for segment in body.get("segments", ()):  # limits of a total, and what only some models honor
        segment["duration"] = 8 / len(body["segments"])
        body.pop("model_size", None)
    if body.get("model_size") == "audiogen-medium":  # what only models of music understand, and its shorter window
        for name in ("bpm", "key", "time_signature", "extend_stride"):
            body.pop(name, None)
    body.get("continue_from", {}).pop("start", None)  # that it precedes the end
    for name in ("fade_in", "fade_out"):  # that the audio is as long as both
        body |= {name: min(body[name], 0.01)} if name in body else {}
    for name in ("loop", "bars", "candidates"):  # that they need each other and music with beats
        body.pop(name, None)
    if body.get("n", 1) * body.get("duration", 10) > 300:
        body["n"] = 1
    if isinstance(performance := body.get("performance"), dict):
        performance |= {"model": "demo", "frames": min(performance["frames"], 500)}  # limits of the model and the route
        performance.pop("extend_stride", None)  # that it is shorter than the window of the model
        for index, change in enumerate(performance["changes"]):
            change["frame"] = 10 * index  # ascending frames
            for number, prompt in enumerate(change["prompts"]):  # different texts, and a total above 0
                prompt |= {"text": f"{prompt['text'][:90]} {number}", "weight": 0.1 + abs(prompt.get("weight", 1)) / 2}


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        ("GET /health", GenerationMode.POSITIVE),
        ("GET /ready", GenerationMode.POSITIVE),
        ("GET /models", GenerationMode.POSITIVE),
        ("GET /audio/{filename}", GenerationMode.POSITIVE),
        ("POST /generate", GenerationMode.POSITIVE),
        ("POST /generate", GenerationMode.NEGATIVE),
        ("POST /generate-stream", GenerationMode.NEGATIVE),
        ("POST /generate-with-melody", GenerationMode.POSITIVE),
        ("POST /generate-with-melody", GenerationMode.NEGATIVE),
        ("POST /generate-continuation", GenerationMode.POSITIVE),
        ("POST /generate-async", GenerationMode.POSITIVE),
        ("POST /generate-async", GenerationMode.NEGATIVE),
        ("GET /tasks", GenerationMode.POSITIVE),
        ("GET /tasks", GenerationMode.NEGATIVE),
        ("GET /tasks/{task_id}", GenerationMode.POSITIVE),
        ("DELETE /tasks/{task_id}", GenerationMode.POSITIVE),
        ("GET /tasks/{task_id}/events", GenerationMode.POSITIVE),
    ],
)
def test_generated_requests_get_documented_responses_and_no_server_error(
    tmp_path: Path, label: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_wsgi(
        "/openapi.json", fake_app(tmp_path, ShortEngine(), log_level="ERROR", offline=True)
    )
    operation = schema.find_operation_by_label(label)
    assert operation is not None
    statuses: Counter[int] = Counter()
    # A schema can require a file, but not that the file is audio.
    excluded = [positive_data_acceptance] if "melody" in label or "continuation" in label else []

    @hypothesis.settings(
        max_examples=NUM_CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def call(case: schemathesis.Case) -> None:
        (case.headers or {}).pop("Idempotency-Key", None)  # reusing a key with a different request is 422
        if isinstance(case.body, dict):
            if case.body.get("stems") is True:
                case.body["stems"] = False  # there is no separator
            if mode is GenerationMode.POSITIVE:
                make_consistent(case.body)
        statuses[case.call_and_validate(excluded_checks=excluded).status_code] += 1

    send_all(call, statuses, NUM_CASES)
    print(f"{label}, {mode.value}: {dict(statuses)}")
    assert not [status for status in statuses if status >= 500]
