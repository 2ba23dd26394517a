"""Audio in S3, from the request to the download: gunicorn with a server that implements S3."""

from __future__ import annotations

import hashlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from audiocraft_api.web.services import services_of
from support.celery_workplace import CeleryWorkplace
from support.fakes import FakeEngine
from support.http import assert_error, fake_app, generate
from support.s3_server import REGION, Gate, S3Server, pass_on, refuse
from support.served import Server, serve, wait_until

REQUEST = {"prompt": "solo cello", "duration": 30, "seed": 7}
NUM_SAMPLE_BYTES = 2 * 30 * 32_000  # the file also contains a header and tags
UNKNOWN = "00000000-0000-4000-8000-000000000000.wav"
IMPATIENT = {"s3_read_timeout_seconds": 1.5, "s3_timeout_seconds": 4.5}
TRAVERSALS = [
    "..",
    "../app.py",
    "..%2fapp.py",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/app.py",
    "%2e%2e%2fapp.py",
    "%252e%252e%252fapp.py",
    "..%5capp.py",
    "..\\app.py",
    "....//app.py",
    "..;/app.py",
    "..%c0%afapp.py",
    "%00.wav",
    f"{UNKNOWN}%00",
    f"{UNKNOWN}%0a",
    f"{UNKNOWN}/..",
    f"%20{UNKNOWN}",
    f"alice%2f{UNKNOWN}%2f..",
    f"audio%2f{UNKNOWN}x",
    UNKNOWN.upper(),
    "file:%2f%2f%2fetc%2fpasswd",
    "s3:%2f%2fbucket%2fkey",
    "?versionId=1",
    "~%2fsecret.wav",
]


@pytest.fixture(scope="module")
def gate(server: S3Server) -> Iterator[Gate]:
    gate = Gate(server.port)
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.make_bucket()


def settings(gate: Gate, bucket: str, **others: Any) -> dict[str, Any]:
    return {
        "audio_store": "s3",
        "s3_endpoint_url": gate.url,
        "s3_region": REGION,
        "s3_bucket": bucket,
        "s3_read_timeout_seconds": 60,
        "s3_attempts": 1,
        "s3_timeout_seconds": 120,
        "s3_sweep": "false",
    } | others


@pytest.fixture(scope="module")
def shared_served(tmp_path_factory: pytest.TempPathFactory, gate: Gate, bucket: str) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("served"), "support.served:app", **settings(gate, bucket)) as served:
        yield served


@pytest.fixture
def served(shared_served: Server, gate: Gate) -> Server:
    gate.faults.clear()
    gate.calls.clear()
    return shared_served


def generate_url(served: Server, **fields: Any) -> str:
    """Generate audio and return its URL."""
    response = served.post("/generate", json=REQUEST | fields)
    assert response.status_code == 200, response.text
    return str(response.json()["audio_url"])


def key_of(url: str) -> str:
    return "audio/" + url.removeprefix("/audio/")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_audio_is_downloaded_completely_and_in_ranges_byte_for_byte(
    served: Server, server: S3Server, bucket: str
) -> None:
    url = generate_url(served)
    whole = server.objects(bucket)[key_of(url)].value
    response = served.get(url)
    assert response.status_code == 200
    num_bytes = len(whole)
    assert num_bytes > NUM_SAMPLE_BYTES
    assert (len(response.content), sha256(response.content)) == (num_bytes, sha256(whole))
    assert response.headers["Content-Type"] == "audio/wav"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "immutable" in response.headers["Cache-Control"]
    assert response.headers["Content-Disposition"] == f"attachment; filename={url.removeprefix('/audio/')}"
    rng = random.Random(7)
    with requests.Session() as session:
        for _ in range(120):
            start = rng.randrange(num_bytes)
            length = rng.choice([1, 2, 1000, 70_000, 500_000])
            end = min(start + length, num_bytes)
            wanted = rng.choice([f"{start}-{start + length - 1}", f"{start}-", f"-{num_bytes - start}"])
            if not wanted.endswith(str(start + length - 1)) or wanted.startswith("-"):
                end = num_bytes
            response = session.get(served.url + url, headers={"Range": f"bytes={wanted}"}, timeout=30)
            assert response.status_code == 206, served.log
            assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{num_bytes}"
            assert sha256(response.content) == sha256(whole[start:end])


def test_head_not_modified_and_unsatisfiable_ranges_need_one_call(
    served: Server, gate: Gate, server: S3Server, bucket: str
) -> None:
    url = generate_url(served)
    num_bytes = len(server.objects(bucket)[key_of(url)].value)
    gate.calls.clear()
    head = requests.head(served.url + url, timeout=10)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(num_bytes)
    cached = served.get(url, headers={"If-None-Match": head.headers["ETag"]})
    assert (cached.status_code, cached.content) == (304, b"")
    outside = served.get(url, headers={"Range": f"bytes={num_bytes}-"})
    assert (outside.status_code, outside.json()["code"]) == (416, "range_not_satisfiable")
    assert outside.headers["Content-Range"] == f"bytes */{num_bytes}"
    assert gate.methods() == ["HEAD"] * 3


def test_bytes_before_a_range_are_not_fetched(served: Server, gate: Gate) -> None:
    url = generate_url(served)
    gate.calls.clear()
    assert len(served.get(url, headers={"Range": "bytes=1000000-1000001"}).content) == 2
    assert gate.methods() == ["HEAD", "GET"]
    assert gate.calls[-1][2]["Range"].startswith("bytes=1000000-")


def test_deleted_and_expired_audio_is_404(served: Server, server: S3Server, bucket: str) -> None:
    old, young = generate_url(served, duration=1), generate_url(served, duration=1)
    server.age(bucket, key_of(old), 86_401)
    server.age(bucket, key_of(young), 86_300)
    assert [served.get(url).status_code for url in (old, young)] == [404, 200]
    server.delete(bucket, key_of(young))
    response = served.get(young)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_path_traversals_are_404_and_cause_no_call(served: Server, gate: Gate) -> None:
    for name in TRAVERSALS:
        with socket.create_connection(
            ("127.0.0.1", served.port), timeout=10
        ) as connection:  # sent without normalizing the path
            connection.sendall(f"GET /audio/{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            response = connection.makefile("rb").read()
        assert response.startswith(b"HTTP/1.1 404 "), (name, response[:200])
    assert gate.calls == []


def test_a_failing_store_is_503_for_one_request_and_the_next_request_works(served: Server, gate: Gate) -> None:
    url = generate_url(served)
    for faults in (
        [refuse(503, "SlowDown")],
        [pass_on, refuse(403, "AccessDenied")],  # fails when the bytes are fetched
    ):
        gate.faults = list(faults)
        response = served.get(url)
        assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
        assert int(response.headers["Retry-After"]) >= 1
        assert "Cache-Control" not in response.headers
        assert served.get(url).status_code == 200
    gate.faults = [refuse(507, "XMinioStorageFull")]
    response = served.post("/generate", json=REQUEST)
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
    assert sha256(served.get(generate_url(served)).content) == sha256(served.get(url).content)


def test_a_store_that_fails_in_the_middle_truncates_the_response(served: Server, gate: Gate) -> None:
    url = generate_url(served)
    gate.faults = [pass_on] * 2 + [refuse(500, "InternalError")]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):  # requests raises this for a truncated body
        served.get(url)
    assert len(served.get(url).content) > NUM_SAMPLE_BYTES


@pytest.mark.timing
def test_requests_for_a_store_that_hangs_are_503_and_health_responds_meanwhile(
    tmp_path: Path, gate: Gate, bucket: str
) -> None:
    gate.faults.clear()
    with serve(tmp_path, "support.served:app", **settings(gate, bucket, **IMPATIENT)) as served:
        gate.calls.clear()
        gate.faults = [gate.hang] * 32
        connections = []
        for _ in range(32):
            connections.append(socket.create_connection(("127.0.0.1", served.port), timeout=30))
            connections[-1].sendall(f"GET /audio/{UNKNOWN} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        wait_until(lambda: len(gate.calls) == 32)
        started = time.monotonic()
        assert served.get("/health").status_code == 200
        assert time.monotonic() - started < IMPATIENT["s3_read_timeout_seconds"]
        for connection in connections:
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 503 ")
            connection.close()


@pytest.mark.fault
def test_a_task_whose_audio_cannot_be_stored_is_retried(
    served: Server, gate: Gate, server: S3Server, bucket: str
) -> None:
    before = len(server.objects(bucket))
    gate.faults = [refuse(503, "SlowDown")]
    task_id = served.post("/generate-async", json=REQUEST).json()["task_id"]
    wait_until(lambda: served.get(f"/tasks/{task_id}").json()["status"] == "completed")
    task = served.get(f"/tasks/{task_id}").json()
    assert task["attempts"] == 2
    assert len(served.get(task["audio_url"]).content) > NUM_SAMPLE_BYTES
    assert len(server.objects(bucket)) == before + 2  # with its codes
    server.delete(bucket, key_of(task["audio_url"]))
    assert served.get(f"/tasks/{task_id}").status_code == 410


def test_an_invalid_setting_stops_the_start_with_a_message(tmp_path: Path, gate: Gate) -> None:
    gate.faults.clear()
    starting = serve(tmp_path, "support.served:app", **settings(gate, "no-such-bucket"))
    with pytest.raises(AssertionError, match="AUDIOCRAFT_API_S3_BUCKET=no-such-bucket is not valid"), starting:
        pass


# --- presigned links


def test_a_client_follows_the_redirect_to_the_store(tmp_path: Path, gate: Gate, server: S3Server, bucket: str) -> None:
    gate.faults.clear()
    links = {"s3_delivery": "presigned", "s3_link_seconds": 60, "s3_link_endpoint_url": server.url}
    with serve(tmp_path, "support.served:app", **settings(gate, bucket, **links)) as served:
        url = generate_url(served)
        redirect = served.get(url, allow_redirects=False)
        assert redirect.status_code == 302
        assert redirect.headers["Location"].startswith(f"{server.url}/{bucket}/{key_of(url)}?")
        assert redirect.headers["Cache-Control"] == "private, max-age=30"
        whole = server.objects(bucket)[key_of(url)].value
        response = served.get(url)
        assert sha256(response.content) == sha256(whole)
        assert response.headers["Content-Type"] == "audio/wav"
        assert response.headers["Content-Disposition"] == f"attachment; filename={url.removeprefix('/audio/')}"
        assert "immutable" in response.headers["Cache-Control"]
        part = served.get(url, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, whole[1000:2000])
        head = requests.head(served.url + url, allow_redirects=True, timeout=10)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(whole)))
        assert served.get(f"/audio/{UNKNOWN}").json()["code"] == "not_found"
        gate.faults = [refuse(503, "SlowDown")]
        assert served.get(url, allow_redirects=False).status_code == 503


def test_only_the_owner_of_the_audio_gets_a_redirect(tmp_path: Path, gate: Gate, bucket: str) -> None:
    gate.faults.clear()
    alice, bob = ({"X-API-Key": name * 8} for name in ("alice", "bobby"))
    keys = ",".join(key["X-API-Key"] for key in (alice, bob))
    app = fake_app(tmp_path, **settings(gate, bucket, keys=keys, s3_delivery="presigned"))
    client = app.test_client()
    url = client.post("/generate", json=REQUEST, headers=alice).json["audio_url"]
    assert client.get(url, headers=alice).status_code == 302
    gate.calls.clear()
    assert_error(client.get(url, headers=bob), 404, "not_found")
    assert_error(client.get(url), 401, "unauthorized")
    assert gate.methods() == ["HEAD", "GET"], "only bob's request reaches the store, and only for bob's own directory"
    assert all(url.removeprefix("/audio/") in path and "X-API-Key" not in headers for _, path, headers in gate.calls)
    services_of(app).close()


# --- without gunicorn


@pytest.fixture
def client(tmp_path: Path, gate: Gate, bucket: str) -> Iterator[FlaskClient]:
    gate.faults.clear()
    engine = FakeEngine()
    app = fake_app(tmp_path, engine, **settings(gate, bucket))
    services_of(app).start()
    yield app.test_client()
    services_of(app).close()


def test_bytes_that_a_disconnected_client_does_not_read_are_not_fetched(client: FlaskClient, gate: Gate) -> None:
    url = generate(client, duration=30).json["audio_url"]
    gate.calls.clear()
    response = client.get(url)
    assert len(next(iter(response.iter_encoded()))) > 0
    response.close()
    assert gate.methods() == ["HEAD", "GET"]


def test_polling_calls_the_store_only_when_the_task_is_completed(client: FlaskClient, gate: Gate) -> None:
    engine = services_of(client.application).engine
    engine.open_gate.clear()
    gate.calls.clear()
    task_url = client.post("/generate-async", json={"prompt": "solo cello", "duration": 1}).headers["Location"]
    for _ in range(5):
        assert client.get(task_url).json["status"] == "processing"
    assert gate.calls == []
    engine.open_gate.set()
    wait_until(lambda: client.get(task_url).json["status"] == "completed")
    gate.calls.clear()
    assert client.get(task_url).status_code == 200
    assert gate.methods() == ["HEAD"]


def test_a_server_sends_the_audio_of_a_celery_worker(tmp_path: Path, gate: Gate, bucket: str) -> None:
    gate.faults.clear()
    with CeleryWorkplace(tmp_path, **settings(gate, bucket)).opened() as workplace:
        app = fake_app(tmp_path / "server", **workplace.prepared_for(FakeEngine()))
        services_of(app).start()
        client = app.test_client()
        url = generate(client, duration=1).json["audio_url"]
        assert len(client.get(url, buffered=True).get_data()) > 64_000
        response = generate(client, duration=1, return_type="base64")
        assert response.status_code == 200
        gate.faults = [refuse(500, "InternalError")]
        assert_error(client.get(url), 503, "storage_unavailable")
        services_of(app).close()
    assert not (tmp_path / "audio").exists()
