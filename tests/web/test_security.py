"""Attacks on a real server are refused. They use raw sockets, because HTTP clients normalize requests."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import parse_headers
from pathlib import Path

import pytest

from audiocraft_api.web.services import services_of
from support.http import fake_app
from support.keys import OTHER_KEY, create_key, with_key
from support.served import ROOT, Server, serve

REQUEST = {"prompt": "solo cello", "duration": 1}
UNKNOWN = "53f5808b-70f6-4e39-9600-4adbf18dca4d"
SECRET = "the content of a secret file"


@dataclass
class Target:
    """A running server with two callers, and secret files in the parent of its audio directory."""

    server: Server
    directory: Path
    alice: str
    bob: str

    def send(self, sent: bytes) -> bytes:
        """Send bytes unchanged and return everything received until the server closes the connection."""
        received = b""
        with self.server.connect() as connection:
            with suppress(ConnectionError):  # the server closes before it has read a megabyte
                connection.sendall(sent)
            with suppress(ConnectionError):
                while block := connection.recv(65536):
                    received += block
        return received

    def request(self, head: bytes) -> RawResponse:
        """Send one request, given without the empty line at its end, and return the response."""
        line, _, headers = head.partition(b"\r\n")  # gunicorn reads the first Connection header only
        received = self.send(line + b"\r\nConnection: close\r\n" + headers + b"\r\n\r\n")
        (response,) = parse_responses(received)
        return response

    def assert_serves(self) -> None:
        """Check that the server still works and logged no traceback."""
        assert self.server.get("/models", headers=with_key(self.alice)).status_code == 200
        assert "Traceback" not in self.server.log


@dataclass
class RawResponse:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def parse_responses(received: bytes) -> list[RawResponse]:
    """Parse all responses of a connection."""
    stream, responses = io.BytesIO(received), []
    while line := stream.readline():
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {name.lower(): value for name, value in parse_headers(stream).items()}
        responses.append(RawResponse(int(line.split()[1]), stream.read(int(headers["content-length"])), headers))
    return responses


def assert_refused(response: RawResponse, *statuses: int) -> None:
    """Check that a response is an error in the common format."""
    assert response.status in statuses, (response.status, response.body[:200])
    body = json.loads(response.body)
    assert set(body) - {"errors", "status"} == {"error", "code", "request_id"}  # `status`: of a task
    assert body["request_id"] == response.headers["x-request-id"]
    if response.status == 401:
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("target")
    app = fake_app(directory)
    alice, bob = create_key(app), create_key(app)
    services_of(app).close()
    for name in ("secret", f"{UNKNOWN}.wav"):
        (directory / name).write_text(SECRET)
    with serve(directory, "support.served:app") as server:
        assert server.post("/generate", json=REQUEST, headers=with_key(alice)).status_code == 200  # creates audio_dir
        yield Target(server, directory, alice, bob)


# Known spellings of a path that leaves a directory, to a file `{}` in its parent.
SPELLINGS = {
    "plain": "../{}",
    "two up": "../../{}",
    "many up": "../" * 40 + "{}",
    "inside": "x/../../{}",
    "dot": "./../{}",
    "encoded slash": "..%2f{}",
    "encoded dots": "%2e%2e/{}",
    "one encoded dot": ".%2e/{}",
    "encoded": "%2e%2e%2f{}",
    "encoded in capitals": "%2E%2E%2F{}",
    "encoded twice": "%252e%252e%252f{}",
    "encoded thrice": "%25252e%25252e%25252f{}",
    "backslash": "..\\{}",
    "encoded backslash": "..%5c{}",
    "backslash encoded twice": "..%255c{}",
    "mixed slashes": "..\\/..%5c%2f../{}",
    "semicolon": "..;/{}",
    "encoded semicolon": "..%3b/{}",
    "four dots": "....//{}",
    "double slash": "..//{}",
    "leading slash": "/../{}",
    "overlong slash": "..%c0%af{}",
    "overlong dots": "%c0%ae%c0%ae/{}",
    "three bytes overlong": "..%e0%80%af{}",
    "wide dots": "%ef%bc%8e%ef%bc%8e/{}",
    "wide slash": "..%ef%bc%8f{}",
    "leader dots": "%e2%80%a5/{}",
    "percent u": "%u002e%u002e%u2215{}",
    "NUL before": "%00../{}",
    "NUL after": "../{}%00.wav",
    "line end": "..%0d%0a/{}",
    "trailing dot": "../{}.",
    "trailing space": "../{}%20",
    "trailing slash": "../{}/",
    "stream": "../{}::$DATA",
    "file URL": "file:%2f%2f%2f{}",
    "home": "~/{}",
    "query": "../{}?x=.wav",
    "fragment": "../{}%23.wav",
    "surrogate": "..%ed%a0%80/{}",
    "no UTF-8": "..%ff/{}",
    "half an escape": "..%2/{}",
    "raw bytes": "..\xc0\xaf{}",
    "long": "a" * 1000 + "/../../{}",
}


class TestTraversal:
    @pytest.mark.parametrize("route", ["/audio/", "/tasks/", "/docs/static/"])
    def test_no_spelling_leaves_a_directory(self, target: Target, route: str) -> None:
        valid = f"\r\nX-API-Key: {target.alice}"
        keys = ["", f"\r\nX-API-Key: {OTHER_KEY}", valid]
        files = ["secret", f"{UNKNOWN}.wav", "etc/passwd"]
        absolute = [str(target.directory / "secret"), str(target.directory / "secret").replace("/", "%2f")]
        spelled = [spelling.format(file) for spelling in SPELLINGS.values() for file in files]
        spelled += ["/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "C:%5cboot.ini", "%5c%5chost%5cshare", *absolute]
        spelled += ["..", "%2e%2e", "..%00", ".", "%00", "a" * 3000, "a/" * 1000, "CON", "-", "*", "%", "%zz"]
        for path in spelled:
            for key in keys:
                address = f"{route}{path}".encode("latin-1")
                response = target.request(b"GET " + address + b" HTTP/1.1\r\nHost: a" + key.encode())
                assert_refused(response, *((400, 404) if key == valid else (400, 401, 404)))
                shown = response.body.decode()
                for leak in (SECRET, "root:", str(target.directory), str(ROOT), "Errno", "Traceback"):
                    assert leak not in shown or leak in path, (path, leak)
        assert len(SPELLINGS) >= 20
        target.assert_serves()

    def test_no_path_redirects_to_a_host_chosen_by_the_client(self, target: Target) -> None:
        for path in ("/audio//x.wav", "/docs//static/docs.js", "/tasks//x", "/docs/static//docs.js"):
            response = target.request(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nX-API-Key: {target.bob}".encode())
            assert_refused(response, 404)
            assert "location" not in response.headers
            assert b"evil.example" not in response.body


def forged_keys(alice: str, bob: str) -> list[str]:
    """Return strings that resemble two valid keys but are not valid."""
    (_, alice_id, alice_secret), (_, bob_id, bob_secret) = (key.split("_", 2) for key in (alice, bob))
    return [
        f"acg_{alice_id}_{bob_secret}",
        f"acg_{bob_id}_{alice_secret}",
        f"acg_{'a' * 8}_{alice_secret}",
        f"acg_{alice_id}_{'a' * 43}",
        f"acg_{alice_id}_",
        alice_secret,
        alice_id,
        alice[:-1],
        alice + "a",
        alice[:-1] + ("b" if alice[-1] == "a" else "a"),
        alice.swapcase(),
        alice.replace("_", "-", 1),
        alice.replace("_", "%5f"),
        f"{alice}%00",
        f'"{alice}"',
        f"'{alice}' OR '1'='1",
        "*",
        "null",
        "undefined",
        "Bearer",
        f"Bearer {alice}",  # in X-API-Key
        alice.replace("a", "\xe0"),
        "\xff" * 100,
    ]


class TestKeys:
    def test_altered_keys_are_refused(self, target: Target) -> None:
        for key in forged_keys(target.alice, target.bob):
            response = target.request(f"GET /tasks HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}".encode("latin-1"))
            assert_refused(response, 401)
            # Different errors would reveal which key ids exist.
            unknown = target.request(b"GET /tasks HTTP/1.1\r\nHost: a\r\nX-API-Key: acg_00000000_" + b"x" * 43)
            assert json.loads(response.body)["error"] == json.loads(unknown.body)["error"]
        target.assert_serves()

    def test_a_key_in_any_other_header_is_ignored(self, target: Target) -> None:
        key = target.alice
        basic = base64.b64encode(f"{key}:".encode()).decode()
        for line in (
            f"Cookie: X-API-Key={key}; key={key}",
            f"Proxy-Authorization: Bearer {key}",
            f"Authorization: Basic {basic}",
            f"Authorization: {key}",
            f"Authorization: Digest username={key}",
            f"X-Forwarded-User: {key}",
            f"Sec-WebSocket-Protocol: audiocraft-api-key.{key}",
            f"X-Api-Key2: {key}",
            f"Referer: http://a/?key={key}",
        ):
            assert_refused(target.request(f"GET /tasks HTTP/1.1\r\nHost: a\r\n{line}".encode()), 401)
            body = (
                f"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 0\r\n{line}"
            )
            assert_refused(target.request(body.encode()), 401)
        assert key not in target.server.log


class TestHeaders:
    def test_no_header_changes_the_caller_or_the_request(self, target: Target) -> None:
        submitted = target.server.post("/generate-async", json=REQUEST, headers=with_key(target.alice))
        path = f"/tasks/{submitted.json()['task_id']}"
        alice_id = target.alice.split("_")[1]
        for line in (
            "X-HTTP-Method-Override: DELETE",
            "X-Method-Override: DELETE",
            f"X-Original-URL: {path}",
            f"X-Rewrite-URL: {path}",
            f"X-Forwarded-Prefix: {path}",
            f"X-Script-Name: {path}",
            f"X-Forwarded-User: {alice_id}",
            f"X-Remote-User: {alice_id}",
            f"Remote-User: {alice_id}",
            f"X-Owner: {alice_id}",
            "X-Forwarded-For: 127.0.0.1",
            "X-Real-IP: 127.0.0.1",
            "X-Forwarded-Host: evil.example",
            "Forwarded: for=127.0.0.1;host=evil.example;proto=https",
            "Host: evil.example",
            "REMOTE_USER: admin",
            "wsgi.url_scheme: https",
        ):
            head = f"GET {path} HTTP/1.1\r\nHost: a\r\n{line}"
            assert_refused(target.request(head.encode()), 400, 401)
            others = target.request(f"{head}\r\nX-API-Key: {target.bob}".encode())
            assert_refused(others, 400, 404)
            own = target.request(f"{head}\r\nX-API-Key: {target.alice}".encode())
            assert own.status in (200, 400)  # 400: headers that an HTTP parser should refuse
            assert b"evil.example" not in own.body + b"".join(value.encode() for value in own.headers.values())
            assert own.status == 400 or json.loads(own.body)["status"] in ("processing", "completed")
        target.assert_serves()

    @pytest.mark.parametrize(
        "framing",
        [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: xchunked\r\nContent-Length: 5",
            "Transfer-Encoding : chunked\r\nContent-Length: 5",
            "Transfer-Encoding:\tchunked\r\nContent-Length: 5",
            "Transfer-Encoding: identity, chunked\r\nContent-Length: 5",
            "Transfer-Encoding: chunked, identity\r\nContent-Length: 5",
            " Transfer-Encoding: chunked\r\nContent-Length: 5",
            "X: a\nTransfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length: 99999999999999999999",
            "Content_Length: 500\r\nContent-Length: 5",
        ],
    )
    def test_no_framing_smuggles_a_request_into_a_connection(self, target: Target, framing: str) -> None:
        smuggled = f"GET /tasks HTTP/1.1\r\nHost: a\r\nX-API-Key: {target.alice}\r\nConnection: close\r\n\r\n"
        head = f"POST /generate HTTP/1.1\r\nHost: a\r\nX-API-Key: {target.bob}\r\n{framing}\r\n"
        received = target.send(f"{head}Content-Type: application/json\r\n\r\n0\r\n\r\n{smuggled}".encode())
        responses = parse_responses(received)
        assert responses
        assert_refused(responses[0], 400, 411, 413, 501)
        # If the end of the body is unambiguous, the rest is a request of its own. Otherwise the connection is closed.
        is_clear = framing in ("Transfer-Encoding: chunked", "Content_Length: 500\r\nContent-Length: 5")
        assert len(responses) == 1 or is_clear, responses
        target.assert_serves()

    @pytest.mark.parametrize(
        "date", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999", "\x80", "Mon"]
    )
    def test_invalid_dates_are_ignored(self, target: Target, date: str) -> None:
        made = target.server.post("/generate", json=REQUEST, headers=with_key(target.alice)).json()
        for path in ("/docs", "/docs/static/docs.js", "/models", made["audio_url"]):
            head = f"GET {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {target.alice}\r\n"
            for lines in (
                f"If-Modified-Since: {date}",
                f"If-Unmodified-Since: {date}",
                f"If-Range: {date}\r\nRange: bytes=0-3",
            ):
                response = target.request((head + lines).encode("latin-1"))
                assert response.status in (200, 206), (path, lines, response)
        target.assert_serves()

    @pytest.mark.parametrize(
        ("lines", "statuses"),
        [
            ("X-Large: " + "a" * 2**20, (431,)),
            ("\r\n".join(f"X-{number}: a" for number in range(1000)), (431,)),
            ("Host: b", (200, 400)),
            ("X-Folded: a\r\n b", (400,)),
            ("X-NUL: a\x00b", (400,)),
            ("X-CR: a\rb", (400,)),
            ("NoColon", (400,)),
            (": no name", (400,)),
            ("X-\xe9: a", (400,)),
            ("Range: bytes=0-1,2-3\r\nRange: bytes=-5", (200, 400)),
            ("Accept: " + ",".join(["*/*"] * 1000), (200, 431)),
            ("Accept-Encoding: " + "gzip," * 1000, (200, 431)),
            ("Content-Type: application/json\r\nContent-Type: text/html", (200, 400)),
            ("Expect: nothing", (200, 400, 417)),
            ("Upgrade: websocket\r\nConnection: Upgrade", (200, 400)),
            ("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", (200,)),
            ("If-None-Match: " + '"a",' * 1000, (200, 431)),
            ("If-Modified-Since: Thu, 99 Foo 9999 99:99:99 GMT", (200,)),
            ("If-Modified-Since: Mon, 01 Jan 99999999999 00:00:00 GMT", (200,)),
            ("X-Request-ID: a\tb<script>", (200,)),
            ("X-Request-ID: " + "a" * 5000, (200,)),
            ("Prefer: wait=99999999999999999999999", (200,)),
            ("Idempotency-Key: " + "a" * 5000, (200,)),
            ("Cookie: " + "a=b;" * 1000, (200, 431)),
            ("Origin: null", (200,)),
            ("Origin: https://evil.example\r\nOrigin: https://b.example", (200, 400)),
        ],
    )
    def test_unusual_headers_cause_no_server_error(self, target: Target, lines: str, statuses: tuple[int, ...]) -> None:
        head = f"GET /models HTTP/1.1\r\nHost: a\r\nX-API-Key: {target.alice}\r\n{lines}"
        response = target.request(head.encode("latin-1"))
        assert response.status in statuses, response
        assert b"<script>" not in b"".join(value.encode() for value in response.headers.values())
        assert len(response.headers["x-request-id"]) <= 128
        if response.status != 200:
            assert_refused(response, response.status)
        target.assert_serves()
