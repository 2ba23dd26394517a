"""Webhooks: their content and signature, the addresses that may be called, and isolation from bad targets."""

from __future__ import annotations

import http.client
import http.server
import ipaddress
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from audiocraft_api.config import Config, ConfigError, load_config
from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.net import outbound
from audiocraft_api.net.outbound import ForbiddenTarget, Target, parse_target, post
from audiocraft_api.services import Services
from audiocraft_api.web.services import services_of
from support.fakes import FakeEngine
from support.http import assert_error, fake_app
from support.receiver import SECRET, Receiver
from support.served import free_port, serve, wait_until
from support.tasks import REQUEST, submit, wait_for

OpenClient = Callable[..., FlaskClient]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def open_client(tmp_path: Path, engine: FakeEngine) -> Iterator[OpenClient]:
    opened: list[Services] = []

    def open_client(**settings: Any) -> FlaskClient:
        own = {"webhook_secret": SECRET, "webhook_allow_private": True, "webhook_timeout_seconds": 30}
        app = fake_app(tmp_path, engine, **own | settings)
        opened.append(services_of(app))
        return app.test_client()

    yield open_client
    engine.open_gate.set()
    for services in opened:
        services.close()


@pytest.fixture
def client(open_client: OpenClient) -> FlaskClient:
    return open_client()


def has_ended(client: FlaskClient, task_id: str) -> bool:
    """Return whether the task is final and its webhook is not pending any more."""
    path = services_of(client.application).config.tasks.db
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT 1 FROM tasks WHERE id = ? AND finished AND NOT webhook_pending"
        return db.execute(query, (task_id,)).fetchone() is not None


class TestDelivery:
    def test_the_final_state_is_delivered_once_and_signed(self, client: FlaskClient, receiver: Receiver) -> None:
        task_id = submit(client, webhook_url=receiver.url)
        done = wait_for(client, task_id)
        wait_until(lambda: has_ended(client, task_id))
        (received,) = receiver.received
        received.verify()
        assert received.headers["webhook-id"] == task_id
        assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert received.headers["content-type"] == "application/json"
        assert received.data == done

    def test_failed_and_canceled_tasks_are_delivered_too(
        self, client: FlaskClient, engine: FakeEngine, receiver: Receiver
    ) -> None:
        engine.failure = GenerationFailed("No.")
        submit(client, webhook_url=receiver.url)
        wait_until(lambda: len(receiver.received) == 1)
        engine.open_gate.clear()
        client.delete(f"/tasks/{submit(client, webhook_url=receiver.url)}")
        wait_until(lambda: len(receiver.received) == 2)
        assert [received.data["status"] for received in receiver.received] == ["failed", "canceled"]

    def test_a_failed_delivery_is_repeated_with_the_same_id(self, client: FlaskClient) -> None:
        receiver = Receiver(500, 404, 302)
        task_id = submit(client, webhook_url=receiver.url)
        wait_until(lambda: len(receiver.received) == 4)
        wait_until(lambda: has_ended(client, task_id))
        for received in receiver.received:
            received.verify()
        assert {received.headers["webhook-id"] for received in receiver.received} == {task_id}
        receiver.close()

    def test_the_attempts_are_limited(self, open_client: OpenClient) -> None:
        client = open_client(webhook_attempts=3)
        receiver = Receiver(*[500] * 20)
        task_id = submit(client, webhook_url=receiver.url)
        wait_until(lambda: has_ended(client, task_id))
        assert len(receiver.received) == 3
        receiver.close()

    def test_pending_webhooks_are_delivered_after_a_restart(self, open_client: OpenClient) -> None:
        port = free_port()  # where nothing listens
        client = open_client()
        task_id = submit(client, webhook_url=f"http://127.0.0.1:{port}/")
        wait_for(client, task_id)
        services_of(client.application).close()
        receiver = Receiver(port=port)
        services_of(open_client().application).start()
        wait_until(lambda: len(receiver.received) == 1)
        assert receiver.received[0].data["task_id"] == task_id
        receiver.close()


class TestRefusals:
    def test_without_a_secret_every_url_is_refused(self, open_client: OpenClient) -> None:
        client = open_client(webhook_secret="")
        response = client.post("/generate-async", json=REQUEST | {"webhook_url": "https://example.org"})
        assert_error(response, 400, "invalid_request", "webhook_url")

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://example.org/",
            "file:///etc/passwd",
            "//example.org",
            "example.org",
            "http://",
            "http://user:secret@example.org/",
            "http://example.org:99999/",
            "http://exa mple.org/",
            "http://example.org/\r\nX: 1",
            "http://ex\u00e4mple.org/",
            "http://[::1",
            "https://example.org/" + "a" * 2000,
            "http://127.0.0.1/",
            "http://10.1.2.3/",
            "http://169.254.169.254/latest/meta-data",
            "http://0.0.0.0/",
            "http://100.64.0.1/",
            "http://224.0.0.1/",
            "http://[::1]/",
            "http://[fe80::1]/",
            "http://[fc00::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[64:ff9b::127.0.0.1]/",
            "http://[2002:7f00:1::]/",
        ],
    )
    def test_addresses_that_would_never_be_called_are_refused_at_once(self, open_client: OpenClient, url: str) -> None:
        client = open_client(webhook_allow_private=False)
        response = client.post("/generate-async", json=REQUEST | {"webhook_url": url})
        assert_error(response, 400, "invalid_request", "webhook_url")
        assert client.get("/tasks").json["tasks"] == []

    @pytest.mark.parametrize(
        "url", ["https://example.org/a?b=c#d", "http://93.184.215.14:8080/", "https://[2606:4700::1]/"]
    )
    def test_public_addresses_are_accepted(self, url: str) -> None:
        assert parse_target(url, allow_private=False).path in ("/a?b=c", "/")

    @pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
    def test_names_of_private_addresses_are_refused_when_they_are_resolved(self, host: str, receiver: Receiver) -> None:
        target = parse_target(f"http://{host}:{receiver.port}/", allow_private=False)
        with pytest.raises(ForbiddenTarget):
            post(target, b"", {}, allow_private=False, timeout_seconds=30)
        assert not receiver.received

    def test_one_private_address_among_public_ones_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(ForbiddenTarget):
            outbound.resolve(parse_target("http://example.org/", allow_private=False), allow_private=False)

    def test_the_call_goes_to_the_address_that_was_checked(
        self, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
    ) -> None:
        """The name server returns a public address first, and a private one from then on."""
        addresses = iter(["93.184.215.14", "127.0.0.1", "127.0.0.1"])
        called: list[Any] = []

        def resolve(_host: str, port: int, **_: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), port))]

        def connect(address: Any, _timeout: float) -> socket.socket:
            called.append(address)
            raise ConnectionRefusedError

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "create_connection", connect)
        target = parse_target(f"http://rebind.example:{receiver.port}/", allow_private=False)
        with pytest.raises(ConnectionRefusedError):
            post(target, b"", {}, allow_private=False, timeout_seconds=30)
        assert called == [("93.184.215.14", receiver.port)]
        assert ipaddress.ip_address(called[0][0]).is_global

    def test_a_forbidden_name_is_not_retried(self, open_client: OpenClient, receiver: Receiver) -> None:
        client = open_client(webhook_allow_private=False)
        task_id = submit(client, webhook_url=f"http://localhost:{receiver.port}/")
        wait_until(lambda: has_ended(client, task_id))
        assert not receiver.received

    def test_redirects_are_not_followed(self, open_client: OpenClient, receiver: Receiver) -> None:
        client = open_client(webhook_attempts=1)
        redirecting = Receiver(307)
        task_id = submit(client, webhook_url=redirecting.url)
        wait_until(lambda: has_ended(client, task_id))
        assert (len(redirecting.received), receiver.received) == (1, [])
        redirecting.close()

    @pytest.mark.parametrize("secret", ["short", "whsec_", "whsec_YWJj", "whsec_not base64!" + "a" * 40])
    def test_an_invalid_secret_stops_the_start_and_is_not_shown(self, secret: str) -> None:
        if secret == "whsec_":
            secret += "YWJj"
        with pytest.raises(ConfigError, match="AUDIOCRAFT_API_WEBHOOK_SECRET") as caught:
            load_config({"AUDIOCRAFT_API_WEBHOOK_SECRET": secret})
        assert secret not in str(caught.value)

    def test_the_secret_appears_in_no_text(self) -> None:
        config = Config(webhook_secret=SECRET)
        assert SECRET not in f"{config!r}{config}{config.model_dump()}"


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """A self-signed certificate for `localhost`, with its key."""
        file = tmp_path / "localhost.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        )
        options = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", str(tmp_path / "cert.pem")]
        subprocess.run([*command.split(), *options], check=True, capture_output=True)
        file.write_text(file.read_text() + (tmp_path / "cert.pem").read_text())
        return file

    def test_the_certificate_must_be_trusted_and_match_the_name(
        self, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        receiver = Receiver(certificate=certificate)
        target = parse_target(f"https://localhost:{receiver.port}/hook", allow_private=True)

        def send(target: Target) -> int:
            return post(target, b"{}", {}, allow_private=True, timeout_seconds=30)

        with pytest.raises(ssl.SSLCertVerificationError):
            send(target)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("cert.pem")))
        assert send(target) == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            send(replace(target, host="127.0.0.1"))
        assert len(receiver.received) == 1
        receiver.close()


class TestBadTargets:
    def test_a_dead_and_an_endless_target_do_not_delay_the_others(
        self, open_client: OpenClient, receiver: Receiver
    ) -> None:
        client = open_client(webhook_timeout_seconds=0.5)
        ended = threading.Event()

        def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
            while not ended.wait(0.05):
                handler.wfile.write(b"H")
                handler.wfile.flush()

        dripping = Receiver(before=drip)
        dripping_url = dripping.url.replace("127.0.0.1", "localhost")  # the sender sees another host
        dead_url = f"http://127.0.0.2:{free_port()}/"
        bad = [submit(client, webhook_url=url) for _ in range(10) for url in (dripping_url, dead_url)]
        last = submit(client, webhook_url=receiver.url)
        wait_for(client, last)
        wait_until(lambda: len(receiver.received) == 1)
        assert any(not has_ended(client, task_id) for task_id in bad)
        assert client.get("/health").status_code == 200
        ended.set()
        dripping.close()

    @pytest.mark.timing
    def test_a_response_that_never_ends_is_cut_off_at_the_timeout(self) -> None:
        ended = threading.Event()

        def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
            while not ended.wait(0.05):
                handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                handler.wfile.flush()

        receiver = Receiver(before=drip)
        started = time.monotonic()
        with pytest.raises((OSError, http.client.HTTPException)):
            post(parse_target(receiver.url, allow_private=True), b"", {}, allow_private=True, timeout_seconds=0.5)
        assert time.monotonic() - started < 5
        ended.set()
        receiver.close()

    def test_a_target_without_tls_is_a_failure(self, receiver: Receiver) -> None:
        target = parse_target(f"https://127.0.0.1:{receiver.port}/", allow_private=True)
        with pytest.raises(ssl.SSLError):
            post(target, b"", {}, allow_private=True, timeout_seconds=30)

    def test_a_hundred_webhooks_of_one_target_are_all_delivered(self, client: FlaskClient, receiver: Receiver) -> None:
        task_ids = [submit(client, webhook_url=receiver.url) for _ in range(100)]
        wait_until(lambda: len(receiver.received) == 100)
        assert {received.headers["webhook-id"] for received in receiver.received} == set(task_ids)


def test_a_killed_server_delivers_after_its_restart(tmp_path: Path) -> None:
    receiver = Receiver(*[503] * 1000)
    settings = {"webhook_secret": SECRET, "webhook_allow_private": True}
    with serve(tmp_path, "support.served:app", **settings) as server:
        task_id = server.post("/generate-async", json=REQUEST | {"webhook_url": receiver.url}).json()["task_id"]
        wait_until(lambda: "is repeated in" in server.log)  # killed earlier, its lease would have to end: 50 s
        server.kill()
    receiver.recover()
    num_before = len(receiver.received)
    with serve(tmp_path, "support.served:app", **settings):
        wait_until(lambda: len(receiver.received) > num_before)
    receiver.received[-1].verify()
    assert receiver.received[-1].data["task_id"] == task_id
    receiver.close()
