"""Attacks from outside, over a real server and raw sockets, so that no client tidies them up: all are refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import parse_headers
from pathlib import Path

import pytest

from audiocraft_api.http.services import services_of
from support.http import fake_app
from support.keys import OTHER_KEY, create_key, with_key
from support.served import ROOT, Server, serve

REQUEST = {"prompt": "solo cello", "duration": 1}
UNKNOWN = "53f5808b-70f6-4e39-9600-4adbf18dca4d"
SECRET = "what nobody may read"


class TestCode:
    def test_bandit_finds_nothing_of_high_severity(self) -> None:
        command = [sys.executable, "-m", "bandit", "-q", "-r", "-f", "json"]
        command += ["audiocraft_api", "app.py", "gunicorn.conf.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        report = json.loads(done.stdout)
        assert not report["errors"]
        assert report["metrics"]["_totals"]["loc"] > 5000
        found = [issue for issue in report["results"] if issue["issue_severity"] != "LOW"]
        for issue in found:
            print(f"{issue['filename']}:{issue['line_number']}: {issue['test_id']} {issue['issue_text']}")
        assert not [issue for issue in found if issue["issue_severity"] == "HIGH"]


@dataclass
class Attacked:
    """A running server with two callers, and a secret beside its folder of audio."""

    server: Server
    directory: Path
    alice: str
    bob: str

    def send(self, sent: bytes) -> bytes:
        """Send bytes as they are and return all that comes back until the server closes."""
        received = b""
        with self.server.connect() as connection:
            with suppress(ConnectionError):  # it is closed before the end of a megabyte
                connection.sendall(sent)
            with suppress(ConnectionError):
                while block := connection.recv(65536):
                    received += block
        return received

    def ask(self, head: bytes) -> Answer:
        """Send one request, without the empty line at its end, and return its one answer."""
        received = self.send(head + b"\r\nConnection: close\r\n\r\n")
        (answer,) = answers_in(received)
        return answer

    def assert_serves(self) -> None:
        """Check that the server is as it was."""
        assert self.server.get("/models", headers=with_key(self.alice)).status_code == 200
        assert "Traceback" not in self.server.log


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def answers_in(received: bytes) -> list[Answer]:
    """Read all answers of a connection."""
    stream, answers = io.BytesIO(received), []
    while line := stream.readline():
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {name.lower(): value for name, value in parse_headers(stream).items()}
        answers.append(Answer(int(line.split()[1]), stream.read(int(headers["content-length"])), headers))
    return answers


def assert_refused(answer: Answer, *statuses: int) -> None:
    """Check that an answer is an error of the one shape."""
    assert answer.status in statuses, (answer.status, answer.body[:200])
    body = json.loads(answer.body)
    assert set(body) - {"errors"} == {"error", "code", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    directory = tmp_path_factory.mktemp("attacked")
    app = fake_app(directory)
    alice, bob = create_key(app), create_key(app)
    services_of(app).close()
    for name in ("secret", f"{UNKNOWN}.wav"):
        (directory / name).write_text(SECRET)
    with serve(directory, "support.served:app") as server:
        assert server.post("/generate", json=REQUEST, headers=with_key(alice)).status_code == 200  # makes the folder
        yield Attacked(server, directory, alice, bob)


# How a climb out of a folder has been spelled, to a file `{}` beside it.
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
    def test_no_spelling_leads_out_of_a_folder(self, attacked: Attacked, route: str) -> None:
        valid = f"\r\nX-API-Key: {attacked.alice}"
        keys = ["", f"\r\nX-API-Key: {OTHER_KEY}", valid]
        files = ["secret", f"{UNKNOWN}.wav", "etc/passwd"]
        absolute = [str(attacked.directory / "secret"), str(attacked.directory / "secret").replace("/", "%2f")]
        spelled = [spelling.format(file) for spelling in SPELLINGS.values() for file in files]
        spelled += ["/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "C:%5cboot.ini", "%5c%5chost%5cshare", *absolute]
        spelled += ["..", "%2e%2e", "..%00", ".", "%00", "a" * 3000, "a/" * 1000, "CON", "-", "*", "%", "%zz"]
        for path in spelled:
            for key in keys:
                target = f"{route}{path}".encode("latin-1")
                answer = attacked.ask(b"GET " + target + b" HTTP/1.1\r\nHost: a" + key.encode())
                assert_refused(answer, *((400, 404) if key == valid else (400, 401, 404)))
                shown = answer.body.decode()
                for leak in (SECRET, "root:", str(attacked.directory), str(ROOT), "Errno", "Traceback"):
                    assert leak not in shown or leak in path, (path, leak)
        assert len(SPELLINGS) >= 20
        attacked.assert_serves()

    def test_no_address_is_redirected_to_a_host_that_the_client_names(self, attacked: Attacked) -> None:
        for path in ("/audio//x.wav", "/docs//static/docs.js", "/tasks//x", "/docs/static//docs.js"):
            answer = attacked.ask(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nX-API-Key: {attacked.bob}".encode())
            assert_refused(answer, 404)
            assert "location" not in answer.headers
            assert b"evil.example" not in answer.body
