"""The operator's moderation service: the request, the effect of its verdict, and the effect of a missing verdict."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from audiocraft_api.config import Config, ConfigError
from audiocraft_api.core.errors import ModerationUnavailable, PromptRefused
from audiocraft_api.policy.prompt_policy import PromptPolicy
from support.served import free_port, wait_until

PROMPT = "solo cello, für Elise 🎻"
TIMEOUT_SECONDS = 0.5
Respond = Callable[[BaseHTTPRequestHandler], None]


class ModerationServer:
    """A moderation service whose response the test chooses."""

    def __init__(self, respond: Respond) -> None:
        self.received: list[tuple[dict[str, str], Any]] = []
        self.num_running = self.most_running = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1  # the response is sent after its call is counted as done

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    server.received.append(
                        ({name.lower(): value for name, value in self.headers.items()}, json.loads(body))
                    )
                    server.num_running += 1
                    server.most_running = max(server.most_running, server.num_running)
                try:
                    respond(self)
                finally:
                    with lock:
                        server.num_running -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # the caller has closed the connection
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/check?a=b"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def respond_with(body: Any, status: int = 200) -> Respond:
    """Respond with JSON, or with bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
        handler.end_headers()
        handler.wfile.write(content)

    return respond


def send_body_slowly(handler: BaseHTTPRequestHandler) -> None:
    """Send a response one byte at a time, with pauses, until the caller closes the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    pause = threading.Event()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        pause.wait(0.02)


def send_headers_slowly(handler: BaseHTTPRequestHandler) -> None:
    pause = threading.Event()
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        pause.wait(0.02)


def never_respond(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.recv(1)  # until the caller closes the connection


def close_connection(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def allow_after(gate: threading.Event) -> Respond:
    allow = respond_with({"allowed": True})

    def respond(handler: BaseHTTPRequestHandler) -> None:
        gate.wait(20)
        allow(handler)

    return respond


BAD_RESPONSES: dict[str, Respond] = {
    "silence": never_respond,
    "slow body": send_body_slowly,
    "slow headers": send_headers_slowly,
    "closed connection": close_connection,
    "error": respond_with({"allowed": True}, status=500),
    "unauthorized": respond_with({"allowed": True}, status=401),
    "redirect": respond_with({"allowed": True}, status=307),
    "not JSON": respond_with(b"yes"),
    "not text": respond_with(b"\xff\xfe"),
    "empty": respond_with(b""),
    "array": respond_with([True]),
    "no verdict": respond_with({"category": "hate"}),
    "verdict as text": respond_with({"allowed": "true"}),
    "verdict as number": respond_with({"allowed": 1}),
    "nested": respond_with(b"[" * 60_000),
    "too large": respond_with(b'{"allowed": true, "filler": "' + b"a" * 100_000 + b'"}'),
    "not HTTP": lambda handler: handler.wfile.write(b"\x00\x01\x02 no HTTP\r\n\r\n") and None,
}


@pytest.fixture
def serve_moderation() -> Iterator[Callable[[Respond], ModerationServer]]:
    servers = []

    def serve(respond: Respond) -> ModerationServer:
        servers.append(ModerationServer(respond))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def policy_for(url: str, **settings: Any) -> PromptPolicy:
    return PromptPolicy(Config(moderation_url=url, **{"moderation_timeout_seconds": TIMEOUT_SECONDS} | settings))


def test_an_allowed_prompt_passes(serve_moderation: Callable[[Respond], ModerationServer]) -> None:
    server = serve_moderation(respond_with({"allowed": True, "model": "something of its own"}))
    policy_for(server.url, moderation_secret="s3cret").require_allowed(PROMPT)
    ((headers, body),) = server.received
    assert body == {"prompt": PROMPT}
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["content-type"] == "application/json"


def test_without_a_secret_none_is_sent(serve_moderation: Callable[[Respond], ModerationServer]) -> None:
    server = serve_moderation(respond_with({"allowed": True}))
    policy_for(server.url).require_allowed(PROMPT)
    assert "authorization" not in server.received[0][0]


@pytest.mark.parametrize("failure", ["open", "closed"])
@pytest.mark.parametrize(
    ("verdict", "category", "suggestion"),
    [
        ({"allowed": False, "category": "hate/threat", "suggestion": "Ask kindly."}, "hate/threat", "Ask kindly."),
        ({"allowed": False}, "moderation", None),
        ({"allowed": False, "category": None, "suggestion": None}, "moderation", None),
        ({"allowed": False, "category": " ", "suggestion": ["a"]}, "moderation", None),
        ({"allowed": False, "category": "a" * 1000, "suggestion": "b" * 1000}, "a" * 100, "b" * 500),
    ],
)
def test_a_disallowed_prompt_is_refused(
    serve_moderation: Callable[[Respond], ModerationServer],
    failure: str,
    verdict: dict[str, Any],
    category: str,
    suggestion: str | None,
) -> None:
    policy = policy_for(serve_moderation(respond_with(verdict)).url, moderation_failure=failure)
    with pytest.raises(PromptRefused) as refusal:
        policy.require_allowed(PROMPT)
    assert (refusal.value.category, refusal.value.suggestion) == (category, suggestion)


def test_a_prompt_refused_by_the_word_list_is_not_sent(serve_moderation: Callable[[Respond], ModerationServer]) -> None:
    server = serve_moderation(respond_with({"allowed": True}))
    with pytest.raises(PromptRefused):
        policy_for(server.url).require_allowed("kill yourself")
    assert server.received == []


@pytest.mark.timing
@pytest.mark.parametrize("how", BAD_RESPONSES)
def test_without_a_verdict_the_setting_decides_within_the_timeout(
    serve_moderation: Callable[[Respond], ModerationServer], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_moderation(BAD_RESPONSES[how])
    started = time.monotonic()
    policy_for(server.url, moderation_failure="open").require_allowed(PROMPT)
    with pytest.raises(ModerationUnavailable) as refusal:
        policy_for(server.url, moderation_failure="closed").require_allowed(PROMPT)
    assert time.monotonic() - started < 2 * TIMEOUT_SECONDS + 10
    assert refusal.value.status == 503
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "cello" not in caplog.text
    wait_until(lambda: server.num_running == 0)  # the connection is closed too


@pytest.mark.parametrize("failure", ["open", "closed"])
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "a" * 100, "a..b"])
def test_an_unreachable_service_gives_no_verdict(host: str, failure: str) -> None:
    policy = policy_for(f"http://{host}:{free_port()}/", moderation_failure=failure)
    if failure == "open":
        policy.require_allowed(PROMPT)
    else:
        with pytest.raises(ModerationUnavailable):
            policy.require_allowed(PROMPT)


@pytest.mark.timing
def test_the_timeout_covers_a_name_server_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def resolve(*_: Any, **__: Any) -> Any:
        release.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    started = time.monotonic()
    try:
        with pytest.raises(ModerationUnavailable):
            policy_for("http://moderation.example/").require_allowed(PROMPT)
    finally:
        release.set()
    assert time.monotonic() - started < TIMEOUT_SECONDS + 10


def test_concurrent_calls_are_bounded_and_others_wait_within_their_time(
    serve_moderation: Callable[[Respond], ModerationServer],
) -> None:
    gate = threading.Event()
    server = serve_moderation(allow_after(gate))
    policy = policy_for(server.url, moderation_calls=2, moderation_timeout_seconds=5)
    short_policy = policy_for(serve_moderation(allow_after(gate)).url, moderation_calls=1)
    with ThreadPoolExecutor(8) as pool:
        checks = [pool.submit(policy.require_allowed, PROMPT) for _ in range(6)]
        wait_until(lambda: server.num_running == 2)
        assert not any(check.done() for check in checks)
        late = [pool.submit(short_policy.require_allowed, PROMPT) for _ in range(2)]
        for check in late:
            assert isinstance(check.exception(60), ModerationUnavailable)
        gate.set()
        for check in checks:
            check.result(60)
    assert server.most_running == 2


def test_a_service_that_hangs_does_not_block_every_thread(
    serve_moderation: Callable[[Respond], ModerationServer],
) -> None:
    gate = threading.Event()
    policy = policy_for(
        serve_moderation(allow_after(gate)).url,
        threads=4,
        moderation_calls=1,
        moderation_timeout_seconds=20,
        moderation_failure="open",
    )
    with ThreadPoolExecutor(3) as pool:
        checks = [pool.submit(policy.require_allowed, PROMPT) for _ in range(3)]
        refused, waiting = wait(checks, 10, FIRST_COMPLETED)
        with pytest.raises(ModerationUnavailable, match="too many prompts"):
            refused.pop().result()
        assert len(waiting) == 2
        gate.set()
        for check in waiting:
            check.result(60)
    policy.require_allowed(PROMPT)


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"moderation_url": "http:///path"}, "MODERATION_URL"),
        ({"moderation_url": "http://user:hidden@host/"}, "MODERATION_URL"),
        ({"moderation_url": "http://host:port/"}, "MODERATION_URL"),
        ({"moderation_url": "http://host/", "moderation_secret": "line\nline"}, "MODERATION_SECRET"),
    ],
)
def test_an_invalid_setting_prevents_the_start(settings: dict[str, Any], variable: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        PromptPolicy(Config(**settings))
    assert f"AUDIOCRAFT_API_{variable}" in str(refusal.value)
    assert "hidden" not in str(refusal.value)
    assert "line" not in str(refusal.value)
