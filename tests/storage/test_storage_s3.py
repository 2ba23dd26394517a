"""A store that is another server fails: each fault ends one call in time, with one error, and nothing half done."""

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
from support.s3_server import CREDENTIALS, REGION, Fault, Gate, S3Server, break_off, hang_up, page, pass_on, refuse
from support.served import ROOT, free_port, wait_until

TIMEOUT_SECONDS = 2.0  # of a whole call
SILENCE_SECONDS = 0.8
UNKNOWN = "00000000-0000-4000-8000-000000000000.wav"
AUDIO = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def gate(server: S3Server) -> Iterator[Gate]:
    gate = Gate(server.port)
    yield gate
    gate.close()


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.make_bucket()


def settings(endpoint_url: str, bucket: str, **others: Any) -> dict[str, Any]:
    return {
        "audio_store": "s3",
        "s3_endpoint_url": endpoint_url,
        "s3_region": REGION,
        "s3_bucket": bucket,
        "s3_connect_timeout_seconds": SILENCE_SECONDS,
        "s3_read_timeout_seconds": SILENCE_SECONDS,
        "s3_attempts": 1,
        "s3_timeout_seconds": TIMEOUT_SECONDS,
        "s3_sweep": False,
    } | others


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
def fails_in_time(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.clear()
    started = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        yield
    assert time.monotonic() - started < TIMEOUT_SECONDS + 1
    assert (caught.value.status, caught.value.message) == (
        503,
        "The audio store is unavailable. Try again later.",
    )
    lines = [record for record in caplog.records if record.name.startswith("audiocraft_api")]
    assert [record.levelno for record in lines] == [logging.ERROR], "the log has the cause, once"


Use = Callable[[S3Store, str], object]
USES: dict[str, Use] = {
    "save": lambda store, _: store.save(b"audio", "wav"),
    "open": lambda store, filename: store.open(filename),
    "delete": lambda store, filename: store.delete(filename),
}
REFUSALS = {
    "forbidden": refuse(403, "AccessDenied"),
    "a clock that is wrong": refuse(403, "RequestTimeTooSkewed"),
    "slow down": refuse(503, "SlowDown"),
    "broken": refuse(500, "InternalError"),
    "full": refuse(507, "XMinioStorageFull"),
    "over the quota": refuse(403, "QuotaExceeded"),
    "a page of a proxy": page(502),
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_fails_one_call_and_the_next_one_works(
    store: S3Store, gate: Gate, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    filename = store.save(b"audio", "wav").filename
    for use in USES.values():
        gate.faults = [fault]
        with fails_in_time(caplog):
            use(store, filename)
        use(store, filename)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("fault", [refuse(500, "InternalError"), refuse(503, "SlowDown"), hang_up], ids=range(3))
def test_an_error_that_passes_is_not_noticed(
    gate: Gate, bucket: str, use: Use, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    store = make_store(gate.url, bucket, s3_attempts=2)
    filename = store.save(b"audio", "wav").filename
    gate.faults = [fault]
    use(store, filename)
    store.close()


@pytest.mark.parametrize("fault", ["hang", "drip", "down"])
def test_a_store_that_is_silent_slow_or_down_fails_every_call_in_time(
    gate: Gate, bucket: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{free_port()}" if fault == "down" else gate.url
    store = make_store(url, bucket)
    gate.faults = [getattr(gate, fault, gate.hang)] * len(USES)
    started = time.monotonic()
    with ThreadPoolExecutor(len(USES)) as pool:
        calls = [pool.submit(use, store, UNKNOWN) for use in USES.values()]
    assert [type(call.exception()) for call in calls] == [StorageUnavailable] * len(USES)
    assert time.monotonic() - started < TIMEOUT_SECONDS + 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * len(USES)
    store.close()


def test_a_bucket_that_is_not_there_is_no_lack_of_a_file(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(gate.url, "no-such-bucket")
    for use in USES.values():
        with fails_in_time(caplog):
            use(store, UNKNOWN)
    store.close()


def test_an_upload_that_breaks_off_leaves_nothing(
    store: S3Store, gate: Gate, server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate.faults = [hang_up]
    with fails_in_time(caplog):
        store.save(AUDIO, "wav")
    assert server.objects(bucket) == {}
    with store.open(store.save(AUDIO, "wav").filename).file as file:
        assert file.read() == AUDIO


def test_an_answer_that_breaks_off_is_asked_for_again(
    store: S3Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    filename = store.save(AUDIO, "wav").filename
    with store.open(filename).file as file:
        gate.faults = [break_off]
        assert file.read() == AUDIO
        gate.faults = [break_off, break_off]
        file.seek(10)
        with fails_in_time(caplog):
            file.read(10)
        assert file.read(10) == AUDIO[10:20]


def test_a_reader_of_a_deleted_file_gets_an_error_and_no_shorter_file(store: S3Store) -> None:
    filename = store.save(AUDIO, "wav").filename
    with store.open(filename).file as file:
        assert file.read(10) == AUDIO[:10]
        store.delete(filename)
        with pytest.raises(NotFound):
            file.read()


def test_only_what_is_read_is_fetched_in_growing_steps(store: S3Store, gate: Gate) -> None:
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
    sizes = [int(end) - int(start) + 1 for start, end in (ranges(call) for call in gate.calls[2:])]
    assert sizes == [
        MIN_READ_BYTES,
        4 * MIN_READ_BYTES,
        MAX_READ_BYTES,
        2_000_000 - 5 * MIN_READ_BYTES - MAX_READ_BYTES,
    ]


def ranges(call: tuple[str, str, dict[str, str]]) -> list[str]:
    return call[2]["Range"].removeprefix("bytes=").split("-")


def test_a_name_that_no_store_makes_causes_no_call(gate: Gate, bucket: str) -> None:
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
        for use in (store.open, store.redirect_for):
            with pytest.raises(NotFound):
                use(name)
        store.delete(name)
    assert gate.calls == []
    store.close()


def test_a_store_that_hangs_takes_half_of_the_threads_at_most(
    gate: Gate, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(gate.url, bucket, threads=4, s3_timeout_seconds=20, s3_read_timeout_seconds=20)
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
def test_a_call_that_was_left_behind_gives_its_place_back_when_it_ends(
    gate: Gate, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(gate.url, bucket, threads=4)
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


def test_a_sweep_that_may_not_delete_says_so(
    gate: Gate, server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(make_store(gate.url, bucket, s3_sweep=False)) as other:
        key = f"audio/{other.save(b'audio', 'wav').filename}"
    # Nothing is saved or opened here: its own sweeper does not begin.
    store = make_store(gate.url, bucket, s3_sweep=True, audio_max_age_seconds=1)
    server.age(bucket, key, 1e6)
    body = f"<DeleteResult><Error><Key>{key}</Key><Code>AccessDenied</Code></Error></DeleteResult>"

    def keep_all(handler: Any) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(
            f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    gate.faults = [pass_on, keep_all]
    with fails_in_time(caplog):
        store.sweep()
    assert "AccessDenied" in caplog.text
    assert store.sweep() == 1
    assert server.objects(bucket) == {}
    store.close()


def sweepers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "audio-sweeper"}


@pytest.mark.parametrize("others", [{"s3_sweep": False}, {"audio_max_age_seconds": 0}])
def test_a_bucket_with_its_own_rule_is_never_listed(
    gate: Gate, server: S3Server, bucket: str, others: dict[str, Any]
) -> None:
    before = sweepers()
    store = make_store(gate.url, bucket, **{"s3_sweep": True} | others)
    filename = store.save(b"audio", "wav").filename
    server.age(bucket, f"audio/{filename}", 1e6)
    gate.calls.clear()
    assert store.sweep() == 0
    assert gate.calls == []
    assert sweepers() <= before
    store.close()


def test_a_stop_does_not_wait_for_a_store_that_hangs(gate: Gate, bucket: str) -> None:
    store = make_store(gate.url, bucket, s3_sweep=True, s3_timeout_seconds=60, s3_read_timeout_seconds=60)
    gate.faults = [lambda handler: handler.command == "GET" and gate.hang(handler)] * 2
    store.save(b"audio", "wav")
    wait_until(lambda: "GET" in gate.methods())
    started = time.monotonic()
    store.close(timeout_seconds=0.1)
    assert time.monotonic() - started < 30  # the call would take 60 s


# --- presigned links


def test_a_link_is_signed_for_one_method_of_one_file_and_a_short_while(server: S3Server, bucket: str) -> None:
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


def test_a_link_names_the_store_as_clients_reach_it(server: S3Server, bucket: str) -> None:
    store = make_store(server.url, bucket, s3_delivery="presigned", s3_link_endpoint_url="https://audio.example.org")
    link = store.redirect_for(store.save(b"audio", "wav").filename)
    assert link.startswith(f"https://audio.example.org/{bucket}/audio/")
    store.close()


def test_no_client_is_sent_elsewhere_unless_the_settings_say_so(store: S3Store, gate: Gate) -> None:
    filename = store.save(b"audio", "wav").filename
    gate.calls.clear()
    assert store.redirect_for(filename) is None
    assert gate.calls == []


# --- the start


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
def test_settings_that_say_nothing_or_would_do_nothing_stop_the_start(
    server: S3Server, bucket: str, wrong: dict[str, Any], named: str
) -> None:
    config = load_config({}, **settings(server.url, bucket) | wrong)
    for start in (create_store, check_store):
        with pytest.raises(ConfigError, match=named):
            start(config)


def test_no_bound_of_the_total_size_is_no_wrong_setting(server: S3Server, bucket: str) -> None:
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
def test_a_store_that_knows_the_settings_are_wrong_stops_the_start(
    gate: Gate, bucket: str, code: str, named: str
) -> None:
    gate.faults = [refuse(400, code)] * 2
    with pytest.raises(ConfigError, match=named):
        check_store(load_config({}, **settings(gate.url, bucket)))


def test_a_bucket_that_is_not_there_stops_the_start(server: S3Server) -> None:
    with pytest.raises(ConfigError, match="AUDIOCRAFT_API_S3_BUCKET=no-such-bucket is not valid"):
        check_store(load_config({}, **settings(server.url, "no-such-bucket")))


def test_no_credentials_stop_the_start(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps credentials
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        check_store(load_config({}, **settings(server.url, bucket)))


@pytest.mark.parametrize("fault", ["hang", "forbidden", "down"])
def test_a_store_that_does_not_answer_or_may_not_be_listed_is_only_logged(
    gate: Gate, bucket: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate.faults = [REFUSALS["forbidden"] if fault == "forbidden" else getattr(gate, fault, gate.hang)] * 3
    url = f"http://127.0.0.1:{free_port()}" if fault == "down" else gate.url
    started = time.monotonic()
    check_store(load_config({}, **settings(url, bucket)))
    assert time.monotonic() - started < TIMEOUT_SECONDS + 1
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
def test_a_setting_of_a_wrong_shape_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"AUDIOCRAFT_API_{field.upper()}"):
        load_config({}, **{field: value})


# --- what docs/storage.md shows


def test_the_documents_that_are_shown_are_taken_and_the_settings_are_there(server: S3Server, bucket: str) -> None:
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
