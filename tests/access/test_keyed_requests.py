"""Generated requests to a service that requires keys: none succeeds without a key, and none breaks the service."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from flask import Flask
from hypothesis import strategies
from schemathesis import GenerationMode

from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.storage.base import new_stem
from audiocraft_api.web.auth import access_of
from audiocraft_api.web.operations import Access
from audiocraft_api.web.services import services_of
from support.fakes import ShortEngine
from support.generated_requests import send_all
from support.http import fake_app, generate
from support.keys import create_key, with_key
from support.served import wait_until

UNKNOWN = "53f5808b-70f6-4e39-9600-4adbf18dca4d"
MODEL_NAMES = {"route", "model", "owner", "name", "version"}  # arguments that name what belongs to nobody
BOTH = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
ROUTES = [
    *((label, mode) for label in ("POST /generate", "POST /generate-async", "GET /tasks") for mode in BOTH),
    *((f"POST /generate-with-melody{suffix}", mode) for suffix in ("", "-async") for mode in BOTH),
    ("POST /generate-stream", GenerationMode.NEGATIVE),
    ("GET /audio/{filename}", GenerationMode.POSITIVE),
    ("GET /tasks/{task_id}", GenerationMode.POSITIVE),
    ("DELETE /tasks/{task_id}", GenerationMode.POSITIVE),
    ("GET /tasks/{task_id}/events", GenerationMode.POSITIVE),
]
NUM_CASES = 30  # per route and mode
NUM_MANY_CASES = 10_000  # in total


def send_generated(directory: Path, label: str, mode: GenerationMode, num_cases: int) -> int:
    """Send generated requests with a valid key, with an invalid key and without a key. Return their number."""
    app = fake_app(directory, ShortEngine(), log_level="ERROR", max_queued_tasks=100_000, offline=True)
    key, unknown_key = create_key(app), "acg_aaaaaaaa_" + "x" * 43
    found = schemathesis.openapi.from_wsgi("/openapi.json", app).find_operation_by_label(label)
    assert found is not None
    credentials = strategies.one_of(
        strategies.just(key),
        strategies.sampled_from([None, unknown_key, key[:-1], key + "x", key.upper()]),
        strategies.text(strategies.characters(codec="ascii", exclude_characters=",", min_codepoint=33), min_size=1),
    )
    statuses: Counter[int] = Counter()

    @hypothesis.settings(
        max_examples=num_cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=found.as_strategy(generation_mode=mode), credential=credentials)
    def call(case: schemathesis.Case, credential: str | None) -> None:
        for name in ("Idempotency-Key", "X-API-Key", "Authorization"):
            (case.headers or {}).pop(name, None)
        if isinstance(case.body, dict) and case.body.get("stems") is True:
            case.body["stems"] = False  # which take time
        if "stream" in label and isinstance(case.body, dict) and case.body.get("output_format") in FORMATS:
            case.body["output_format"] = "wav"  # the client does not close unread streams, so ffmpeg would keep running
        response = case.call(headers={} if credential is None else with_key(credential))
        statuses[response.status_code] += 1
        if credential != key:
            assert response.status_code == 401
            assert response.json()["error"] == "Invalid or missing API key"
        elif response.status_code >= 500:
            assert (response.status_code, "retry-after" in response.headers) == (503, True), response.text

    send_all(call, statuses, num_cases)
    print(f"{label}, {mode.value}: {dict(statuses)}")
    assert set(statuses) - {401}
    return statuses.total()


@pytest.mark.parametrize(("label", "mode"), ROUTES)
def test_no_request_bypasses_the_key_or_breaks_the_server(tmp_path: Path, label: str, mode: GenerationMode) -> None:
    send_generated(tmp_path, label, mode, NUM_CASES)


@pytest.mark.fault
def test_none_of_ten_thousand_requests_bypasses_the_key_or_breaks_the_server(tmp_path: Path) -> None:
    num_each = NUM_MANY_CASES // len(ROUTES) + 1
    assert (
        sum(
            send_generated(tmp_path / str(number), label, mode, num_each) for number, (label, mode) in enumerate(ROUTES)
        )
        >= NUM_MANY_CASES
    )


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return fake_app(tmp_path)


def test_ids_of_other_owners_look_like_unknown_ids_on_every_route_with_an_id(app: Flask) -> None:
    key = create_key(app)
    alice, bob = with_key(key), with_key(create_key(app))
    client = app.test_client()
    generated = client.post("/generate", json={"prompt": "solo cello", "duration": 1}, headers=alice).json
    task_id = client.post("/generate-async", json={"prompt": "solo cello", "duration": 1}, headers=alice).json[
        "task_id"
    ]
    wait_until(lambda: client.get(f"/tasks/{task_id}", headers=alice).json["status"] == "completed")
    performance = new_stem()
    services_of(app).performances.save(performance, {"frames": 1}, key.split("_")[1])
    assert client.get(f"/performances/{performance}", headers=alice).status_code == 200
    form = {"content": (io.BytesIO(b"RIFF"), "a.wav")}
    file_id = client.post("/v1/files", data=form, headers=alice).json["id"]
    assert client.get(f"/v1/files/{file_id}", headers=alice).status_code == 200
    ids = {
        "filename": (generated["audio_url"].removeprefix("/audio/"), f"{UNKNOWN}.wav"),
        "task_id": (task_id, UNKNOWN),
        "prediction_id": (task_id, UNKNOWN),
        "performance_id": (performance, UNKNOWN),
        "file_id": (file_id, UNKNOWN),
    }
    num_requests = 0
    for rule in app.url_map.iter_rules():
        if not rule.arguments - MODEL_NAMES or access_of(app, rule.endpoint) is Access.OPEN:
            continue
        (argument,) = rule.arguments  # a new kind of id must be added to `ids`
        for method in (rule.methods or set()) - {"OPTIONS", "PUT"}:  # PUT creates something with an id of the caller
            responses = []
            for value in ids[argument]:
                path = rule.rule.replace(f"<{argument}>", value)
                responses.append(client.open(path, method=method, headers=bob, buffered=True))
            assert [response.status_code for response in responses] == [404, 404], (method, rule.rule)
            bodies: list[Any] = [response.get_json(silent=True) or {} for response in responses]
            has_no_id = method == "HEAD" or rule.endpoint.startswith("compat_")
            assert [body.pop("request_id", None) is None for body in bodies] == [has_no_id] * 2
            assert bodies[0] == bodies[1]
            num_requests += 1
    assert num_requests >= 10
    assert generate(client).status_code == 401
