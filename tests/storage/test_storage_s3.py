"""Faults of an S3 store: each fails one call in time, with one error, and leaves nothing half-written."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.retries import standard

from audiocraft_api.config import ConfigError, all_settings, load_config, variable_name
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.storage.create import check_store, create_store
from audiocraft_api.storage.local import LocalStore
from audiocraft_api.storage.s3 import READERS_SECONDS, S3Store
from audiocraft_api.storage.s3_file import MAX_READ_BYTES, MIN_READ_BYTES
from support.s3_server import CREDENTIALS, REGION, Fault, Gate, S3Server, error_page, hang_up, pass_on, refuse, truncate
from support.served import ROOT, free_port, wait_until

PATIENT = {"s3_connect_timeout_seconds": 60, "s3_read_timeout_seconds": 60, "s3_timeout_seconds": 120}
IMPATIENT = {"s3_connect_timeout_seconds": 0.8, "s3_read_timeout_seconds": 0.8, "s3_timeout_seconds": 2}
UNKNOWN = "00000000-0000-4000-8000-000000000000.wav"
AUDIO = os.urandom(3_000_000)


@pytest.fixture
def gate(server: S3Server) -> Iterator[Gate]:
    gate = Gate(server.port)
    yield gate
    gate.close()


def settings(endpoint_url: str, bucket: str, **others: Any) -> dict[str, Any]:
    return {
        "audio_store": "s3",
        "s3_endpoint_url": endpoint_url,
        "s3_region": REGION,
        "s3_bucket": bucket,
        "s3_attempts": 1,
        "s3_sweep": False,
    } | (PATIENT | others)


def make_store(endpoint_url: str, bucket: str, **others: Any) -> S3Store:
    store = create_store(load_config({}, **settings(endpoint_url, bucket, **others)))
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def store(gate: Gate, bucket: str) -> Iterator[S3Store]:
    store = make_store(gate.url, bucket)
    yield store
    store.close()


@contextmanager
def expect_failure(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.clear()
    with pytest.raises(StorageUnavailable) as caught:
        yield
    assert (caught.value.status, caught.value.message) == (
        503,
        "The audio store is unavailable. Try again later.",
    )
    lines = [record for record in caplog.records if record.name.startswith("audiocraft_api")]
    assert [record.levelno for record in lines] == [logging.ERROR], "the cause is not logged exactly once"


Operation = Callable[[S3Store, str], object]
OPERATIONS: dict[str, Operation] = {
    "save": lambda store, _: store.save(b"audio", "wav"),
    "open": lambda store, filename: store.open(filename),
    "delete": lambda store, filename: store.delete(filename),
}
REFUSALS = {
    "forbidden": refuse(403, "AccessDenied"),
    "wrong clock": refuse(403, "RequestTimeTooSkewed"),
    "slow down": refuse(503, "SlowDown"),
    "internal error": refuse(500, "InternalError"),
    "storage full": refuse(507, "XMinioStorageFull"),
    "quota exceeded": refuse(403, "QuotaExceeded"),
    "proxy error page": error_page(502),
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
def test_an_error_response_fails_one_call_and_the_next_call_works(
    store: S3Store, gate: Gate, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    filename = store.save(b"audio", "wav").filename
    for operation in OPERATIONS.values():
        gate.faults = [fault]
        with expect_failure(caplog):
            operation(store, filename)
        operation(store, filename)


def test_audio_is_stored_without_its_codes_if_only_those_fail(
    store: S3Store, gate: Gate, server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate.faults = [pass_on, refuse(507, "XMinioStorageFull")]
    filename = store.save(b"audio", "wav", codes=b"codes").filename
    assert list(server.objects(bucket)) == [f"audio/{filename}"]
    assert "XMinioStorageFull" in caplog.text


def test_codes_that_cannot_be_read_are_an_error_and_not_missing(
    store: S3Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    filename = store.save(b"audio", "wav", codes=b"codes").filename
    for fault in REFUSALS.values():
        gate.faults = [fault]
        with expect_failure(caplog):
            store.codes_of(filename)
    assert store.codes_of(filename) == b"codes"


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("fault", [refuse(500, "InternalError"), refuse(503, "SlowDown"), hang_up], ids=range(3))
def test_a_temporary_error_is_retried(
    gate: Gate, bucket: str, operation: Operation, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    store = make_store(gate.url, bucket, s3_attempts=2, s3_timeout_seconds=30)
    filename = store.save(b"audio", "wav").filename
    gate.faults = [fault]
    operation(store, filename)
    store.close()


@pytest.mark.timing
@pytest.mark.parametrize("fault", ["hang", "drip", "down"])
def test_a_store_that_is_silent_slow_or_down_fails_every_call_in_time(
    gate: Gate, bucket: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{free_port()}" if fault == "down" else gate.url
    store = make_store(url, bucket, **IMPATIENT)
    gate.faults = [getattr(gate, fault, gate.hang)] * len(OPERATIONS)
    started = time.monotonic()
    with ThreadPoolExecutor(len(OPERATIONS)) as pool:
        calls = [pool.submit(operation, store, UNKNOWN) for operation in OPERATIONS.values()]
    assert [type(call.exception()) for call in calls] == [StorageUnavailable] * len(OPERATIONS)
    assert time.monotonic() - started < IMPATIENT["s3_timeout_seconds"] + 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * len(OPERATIONS)
    store.close()


def test_a_missing_bucket_is_an_error_and_not_a_missing_file(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(gate.url, "no-such-bucket")
    for operation in OPERATIONS.values():
        with expect_failure(caplog):
            operation(store, UNKNOWN)
    store.close()


def test_an_interrupted_upload_leaves_no_object(
    store: S3Store, gate: Gate, server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate.faults = [hang_up]
    with expect_failure(caplog):
        store.save(AUDIO, "wav")
    assert server.objects(bucket) == {}
    with store.open(store.save(AUDIO, "wav").filename).file as file:
        assert file.read() == AUDIO


def test_a_truncated_response_is_fetched_again(store: S3Store, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    filename = store.save(AUDIO, "wav").filename
    with store.open(filename).file as file:
        gate.faults = [truncate]
        assert file.read() == AUDIO
        gate.faults = [truncate, truncate]
        file.seek(10)
        with expect_failure(caplog):
            file.read(10)
        assert file.read(10) == AUDIO[10:20]


def test_a_reader_of_a_deleted_file_gets_an_error_instead_of_a_truncated_file(store: S3Store) -> None:
    filename = store.save(AUDIO, "wav").filename
    with store.open(filename).file as file:
        assert file.read(10) == AUDIO[:10]
        store.delete(filename)
        with pytest.raises(NotFound):
            file.read()


def test_only_bytes_that_are_read_are_fetched_in_growing_blocks(store: S3Store, gate: Gate) -> None:
    filename = store.save(AUDIO, "wav").filename
    gate.calls.clear()
    store.open(filename).file.close()
    assert gate.methods() == ["HEAD"]
    with store.open(filename).file as file:
        file.seek(1_000_000)
        assert file.read(2) == AUDIO[1_000_000:1_000_002]
        assert gate.calls[-1][2]["Range"] == f"bytes=1000000-{1_000_000 + MIN_READ_BYTES - 1}"
        while file.read(8192):
            pass
    assert gate.methods()[1:] == ["HEAD", "GET", "GET", "GET", "GET"]
    sizes = [int(end) - int(start) + 1 for start, end in (range_of(call) for call in gate.calls[2:])]
    assert sizes == [
        MIN_READ_BYTES,
        4 * MIN_READ_BYTES,
        MAX_READ_BYTES,
        2_000_000 - 5 * MIN_READ_BYTES - MAX_READ_BYTES,
    ]


def range_of(call: tuple[str, str, dict[str, str]]) -> list[str]:
    return call[2]["Range"].removeprefix("bytes=").split("-")


def test_an_invalid_name_causes_no_call(gate: Gate, bucket: str) -> None:
    store = make_store(gate.url, bucket, s3_delivery="presigned")
    for name in (
        "",
        "..",
        "../secret.wav",
        f"../{UNKNOWN}",
        f"a/b/{UNKNOWN}",
        f"{UNKNOWN}\n",
        "audio/",
        "%2e%2e%2fx.wav",
    ):
        for operation in (store.open, store.redirect_for):
            with pytest.raises(NotFound):
                operation(name)
        store.delete(name)
    assert gate.calls == []
    store.close()


@pytest.mark.timing
def test_a_store_that_hangs_occupies_at_most_half_of_the_threads(
    gate: Gate, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(gate.url, bucket, threads=4)
    gate.faults = [gate.hang] * 2
    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(store.open, UNKNOWN) for _ in range(2)]
        wait_until(lambda: len(gate.calls) == 2)
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            store.open(UNKNOWN)
        assert time.monotonic() - started < 5
        assert "too many concurrent calls" in caplog.text
        gate.opened.set()
        for call in hanging:
            assert isinstance(call.exception(), (NotFound, StorageUnavailable))
    with pytest.raises(NotFound):
        store.open(UNKNOWN)
    store.close()


@pytest.mark.fault
def test_an_abandoned_call_frees_its_slot_when_it_ends(
    gate: Gate, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(gate.url, bucket, threads=4, **IMPATIENT)
    gate.faults = [gate.drip] * 2
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(store.open, UNKNOWN) for _ in range(2)]
    assert [type(call.exception()) for call in calls] == [StorageUnavailable] * 2
    with pytest.raises(StorageUnavailable):
        store.open(UNKNOWN)
    assert "too many concurrent calls" in caplog.text
    gate.opened.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "s3-call"])
    with pytest.raises(NotFound):
        store.open(UNKNOWN)
    store.close()


def test_a_sweep_without_permission_to_delete_logs_the_error(
    gate: Gate, server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(make_store(gate.url, bucket, s3_sweep=False)) as other:
        key = f"audio/{other.save(b'audio', 'wav').filename}"
    # This store saves and opens nothing, so its background sweep does not start.
    store = make_store(gate.url, bucket, s3_sweep=True, audio_max_age_seconds=1)
    server.age(bucket, key, 1e6)
    body = f"<DeleteResult><Error><Key>{key}</Key><Code>AccessDenied</Code></Error></DeleteResult>"

    def refuse_deletion(handler: Any) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(
            f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    gate.faults = [pass_on, refuse_deletion]
    with expect_failure(caplog):
        store.sweep()
    assert "AccessDenied" in caplog.text
    assert store.sweep() == 1
    assert server.objects(bucket) == {}
    store.close()


def sweeper_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "audio-sweeper"}


@pytest.mark.parametrize("others", [{"s3_sweep": False}, {"audio_max_age_seconds": 0}])
def test_without_sweeps_the_bucket_is_never_listed(
    gate: Gate, server: S3Server, bucket: str, others: dict[str, Any]
) -> None:
    before = sweeper_threads()
    store = make_store(gate.url, bucket, **{"s3_sweep": True} | others)
    filename = store.save(b"audio", "wav").filename
    server.age(bucket, f"audio/{filename}", 1e6)
    gate.calls.clear()
    assert store.sweep() == 0
    assert gate.calls == []
    assert sweeper_threads() <= before
    store.close()


def test_closing_does_not_wait_for_a_store_that_hangs(gate: Gate, bucket: str) -> None:
    store = make_store(gate.url, bucket, s3_sweep=True)
    gate.faults = [lambda handler: handler.command == "GET" and gate.hang(handler)] * 2
    store.save(b"audio", "wav")
    wait_until(lambda: "GET" in gate.methods())
    started = time.monotonic()
    store.close(timeout_seconds=0.1)
    assert time.monotonic() - started < 30  # the call would take 60 s


# --- presigned links


def test_a_link_is_signed_for_one_method_one_file_and_a_short_time(server: S3Server, bucket: str) -> None:
    store = make_store(server.url, bucket, s3_delivery="presigned", s3_link_seconds=77)
    filename = store.save(b"audio", "wav", "alice").filename
    links = [store.redirect_for(filename, is_head=is_head) for is_head in (False, True)]
    for link in links:
        parts = urlsplit(link)
        query = parse_qs(parts.query)
        assert f"{parts.scheme}://{parts.netloc}" == server.url
        assert parts.path == f"/{bucket}/audio/{filename}"
        assert query["X-Amz-Expires"] == ["77"]
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert query["X-Amz-Credential"][0].split("/")[0] == CREDENTIALS["AWS_ACCESS_KEY_ID"]
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in link
    assert (
        parse_qs(urlsplit(links[0]).query)["X-Amz-Signature"] != parse_qs(urlsplit(links[1]).query)["X-Amz-Signature"]
    )
    for name in (UNKNOWN, f"bob/{filename.partition('/')[2]}"):
        with pytest.raises(NotFound):
            store.redirect_for(name)
    store.close()


def test_a_link_uses_the_endpoint_for_clients(server: S3Server, bucket: str) -> None:
    store = make_store(server.url, bucket, s3_delivery="presigned", s3_link_endpoint_url="https://audio.example.org")
    link = store.redirect_for(store.save(b"audio", "wav").filename)
    assert link.startswith(f"https://audio.example.org/{bucket}/audio/")
    store.close()


def test_clients_are_redirected_only_if_the_settings_enable_it(store: S3Store, gate: Gate) -> None:
    filename = store.save(b"audio", "wav").filename
    gate.calls.clear()
    assert store.redirect_for(filename) is None
    assert gate.calls == []


# --- checks at the start


def test_the_settings_choose_the_store(tmp_path: Path, server: S3Server, bucket: str) -> None:
    assert isinstance(create_store(load_config({}, audio_dir=tmp_path)), LocalStore)
    assert isinstance(create_store(load_config({}, **settings(server.url, bucket))), S3Store)
    check_store(load_config({}, audio_dir=tmp_path))
    check_store(load_config({}, **settings(server.url, bucket)))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"s3_bucket": ""}, "AUDIOCRAFT_API_S3_BUCKET"),
        ({"audio_max_total_bytes": 10**9}, "AUDIOCRAFT_API_AUDIO_MAX_TOTAL_BYTES"),
    ],
)
def test_missing_and_unsupported_settings_stop_the_start(
    server: S3Server, bucket: str, wrong: dict[str, Any], named: str
) -> None:
    config = load_config({}, **settings(server.url, bucket) | wrong)
    for start in (create_store, check_store):
        with pytest.raises(ConfigError, match=named):
            start(config)


def test_a_total_size_without_a_limit_is_allowed(server: S3Server, bucket: str) -> None:
    make_store(server.url, bucket, audio_max_total_bytes=0).close()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("NoSuchBucket", "AUDIOCRAFT_API_S3_BUCKET"),
        ("PermanentRedirect", "AUDIOCRAFT_API_S3_REGION"),
        ("AuthorizationHeaderMalformed", "AUDIOCRAFT_API_S3_REGION"),
        ("InvalidAccessKeyId", "AWS credentials"),
        ("SignatureDoesNotMatch", "AWS credentials"),
    ],
)
def test_settings_that_the_store_rejects_stop_the_start(gate: Gate, bucket: str, code: str, named: str) -> None:
    gate.faults = [refuse(400, code)] * 2
    with pytest.raises(ConfigError, match=named):
        check_store(load_config({}, **settings(gate.url, bucket)))


def test_a_missing_bucket_stops_the_start(server: S3Server) -> None:
    with pytest.raises(ConfigError, match="AUDIOCRAFT_API_S3_BUCKET=no-such-bucket is not valid"):
        check_store(load_config({}, **settings(server.url, "no-such-bucket")))


def test_missing_credentials_stop_the_start(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it caches credentials
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        check_store(load_config({}, **settings(server.url, bucket)))


@pytest.mark.parametrize("fault", ["hang", "forbidden", "down"])
def test_a_store_that_is_unreachable_or_forbids_listing_is_only_logged(
    gate: Gate, bucket: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate.faults = [REFUSALS["forbidden"] if fault == "forbidden" else getattr(gate, fault, gate.hang)] * 3
    url = f"http://127.0.0.1:{free_port()}" if fault == "down" else gate.url
    check_store(load_config({}, **settings(url, bucket, **IMPATIENT)))
    assert ("does not allow listing" if fault == "forbidden" else "is unreachable") in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("s3_bucket", "a/b"),
        ("s3_prefix", "no-slash"),
        ("s3_prefix", "../"),
        ("s3_endpoint_url", "minio:9000"),
        ("s3_link_seconds", 0),
        ("audio_store", "gcs"),
    ],
)
def test_the_message_for_an_invalid_setting_names_it(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"AUDIOCRAFT_API_{field.upper()}"):
        load_config({}, **{field: value})


# --- docs/storage.md


def test_the_documented_policies_are_accepted_and_the_documented_settings_exist(server: S3Server, bucket: str) -> None:
    text = (ROOT / "docs" / "storage.md").read_text()
    policy, cors, rule = (json.loads(found) for found in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    client = boto3.client("s3", endpoint_url=server.url, region_name=REGION)
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    client.put_bucket_cors(Bucket=bucket, CORSConfiguration=cors)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rule)
    days = rule["Rules"][0]["Expiration"]["Days"]
    config = load_config({})
    assert days * 86_400 >= config.storage.max_age_seconds + READERS_SECONDS
    assert rule["Rules"][0]["Filter"]["Prefix"] == config.storage.s3_prefix
    named = set(re.findall(r"AUDIOCRAFT_API_[A-Z0-9_]+", text))
    assert named <= {variable_name(name) for name in all_settings()}
