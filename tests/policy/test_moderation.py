"""The operator's moderation service: what it is asked, what its answer does, and what happens when none comes in time."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
Answer = Callable[[BaseHTTPRequestHandler], None]


class ModerationServer:
    """A moderation service that answers as it is told."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[tuple[dict[str, str], Any]] = []
        self.num_running = self.most_running = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1  # an answer leaves when its call has been counted out: who has it may call again

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    server.asked.append(
                        ({name.lower(): value for name, value in self.headers.items()}, json.loads(body))
                    )
                    server.num_running += 1
                    server.most_running = max(server.most_running, server.num_running)
                try:
                    answer(self)
                finally:
                    with lock:
                        server.num_running -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # the caller has hung up
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/check?a=b"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def say(body: Any, status: int = 200) -> Answer:
    """Answer with JSON, or with bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte of an answer now and then, for as long as somebody listens."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    pause = threading.Event()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        pause.wait(0.02)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    pause = threading.Event()
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        pause.wait(0.02)


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.recv(1)  # until the caller hangs up


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def allow_after(gate: threading.Event) -> Answer:
    allow = say({"allowed": True})

    def answer(handler: BaseHTTPRequestHandler) -> None:
        gate.wait(20)
        allow(handler)

    return answer


NO_ANSWERS: dict[str, Answer] = {
    "silence": say_nothing,
    "drip": drip,
    "drip of headers": drip_headers,
    "hang-up": hang_up,
    "error": say({"allowed": True}, status=500),
    "unauthorized": say({"allowed": True}, status=401),
    "redirect": say({"allowed": True}, status=307),
    "no JSON": say(b"yes"),
    "no text": say(b"\xff\xfe"),
    "nothing": say(b""),
    "array": say([True]),
    "no verdict": say({"category": "hate"}),
    "verdict as text": say({"allowed": "true"}),
    "verdict as number": say({"allowed": 1}),
    "nested": say(b"[" * 60_000),
    "too large": say(b'{"allowed": true, "filler": "' + b"a" * 100_000 + b'"}'),
    "no HTTP": lambda handler: handler.wfile.write(b"\x00\x01\x02 no HTTP\r\n\r\n") and None,
}


@pytest.fixture
def serve_moderation() -> Iterator[Callable[[Answer], ModerationServer]]:
    servers = []

    def serve(answer: Answer) -> ModerationServer:
        servers.append(ModerationServer(answer))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def policy_for(url: str, **settings: Any) -> PromptPolicy:
    return PromptPolicy(Config(moderation_url=url, **{"moderation_timeout_seconds": TIMEOUT_SECONDS} | settings))


def test_a_prompt_that_is_allowed_passes(serve_moderation: Callable[[Answer], ModerationServer]) -> None:
    server = serve_moderation(say({"allowed": True, "model": "something of its own"}))
    policy_for(server.url, moderation_secret="s3cret").check(PROMPT)
    ((headers, asked),) = server.asked
    assert asked == {"prompt": PROMPT}
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["content-type"] == "application/json"


def test_without_a_secret_none_is_sent(serve_moderation: Callable[[Answer], ModerationServer]) -> None:
    server = serve_moderation(say({"allowed": True}))
    policy_for(server.url).check(PROMPT)
    assert "authorization" not in server.asked[0][0]


@pytest.mark.parametrize("failure", ["open", "closed"])
@pytest.mark.parametrize(
    ("answer", "category", "suggestion"),
    [
        ({"allowed": False, "category": "hate/threat", "suggestion": "Ask kindly."}, "hate/threat", "Ask kindly."),
        ({"allowed": False}, "moderation", None),
        ({"allowed": False, "category": None, "suggestion": None}, "moderation", None),
        ({"allowed": False, "category": " ", "suggestion": ["a"]}, "moderation", None),
        ({"allowed": False, "category": "a" * 1000, "suggestion": "b" * 1000}, "a" * 100, "b" * 500),
    ],
)
def test_a_prompt_that_is_not_allowed_is_refused(
    serve_moderation: Callable[[Answer], ModerationServer],
    failure: str,
    answer: dict[str, Any],
    category: str,
    suggestion: str | None,
) -> None:
    policy = policy_for(serve_moderation(say(answer)).url, moderation_failure=failure)
    with pytest.raises(PromptRefused) as refusal:
        policy.check(PROMPT)
    assert (refusal.value.category, refusal.value.suggestion) == (category, suggestion)


def test_what_the_list_refuses_is_not_asked_about(serve_moderation: Callable[[Answer], ModerationServer]) -> None:
    server = serve_moderation(say({"allowed": True}))
    with pytest.raises(PromptRefused):
        policy_for(server.url).check("kill yourself")
    assert server.asked == []


@pytest.mark.parametrize("how", NO_ANSWERS)
def test_no_answer_is_what_the_operator_says_within_the_time(
    serve_moderation: Callable[[Answer], ModerationServer], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_moderation(NO_ANSWERS[how])
    started = time.monotonic()
    policy_for(server.url, moderation_failure="open").check(PROMPT)
    with pytest.raises(ModerationUnavailable) as refusal:
        policy_for(server.url, moderation_failure="closed").check(PROMPT)
    assert time.monotonic() - started < 2 * TIMEOUT_SECONDS + 1
    assert refusal.value.status == 503
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "cello" not in caplog.text
    wait_until(lambda: server.num_running == 0)  # the connection is cut off too


@pytest.mark.parametrize("failure", ["open", "closed"])
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "a" * 100, "a..b"])
def test_a_service_that_is_not_there_gives_no_answer(host: str, failure: str) -> None:
    policy = policy_for(f"http://{host}:{free_port()}/", moderation_failure=failure)
    if failure == "open":
        policy.check(PROMPT)
    else:
        with pytest.raises(ModerationUnavailable):
            policy.check(PROMPT)


def test_a_name_server_that_does_not_answer_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()

    def resolve(*_: Any, **__: Any) -> Any:
        hold.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    started = time.monotonic()
    try:
        with pytest.raises(ModerationUnavailable):
            policy_for("http://moderation.example/").check(PROMPT)
    finally:
        hold.set()
    assert time.monotonic() - started < TIMEOUT_SECONDS + 1


def test_few_calls_run_at_once_and_the_others_wait_within_their_time(
    serve_moderation: Callable[[Answer], ModerationServer],
) -> None:
    gate = threading.Event()
    server = serve_moderation(allow_after(gate))
    policy = policy_for(server.url, moderation_calls=2, moderation_timeout_seconds=5)
    hurried = policy_for(serve_moderation(allow_after(gate)).url, moderation_calls=1)
    with ThreadPoolExecutor(8) as pool:
        checks = [pool.submit(policy.check, PROMPT) for _ in range(6)]
        wait_until(lambda: server.num_running == 2)
        assert not any(check.done() for check in checks)
        late = [pool.submit(hurried.check, PROMPT) for _ in range(2)]
        for check in late:
            assert isinstance(check.exception(10), ModerationUnavailable)
        gate.set()
        for check in checks:
            check.result(10)
    assert server.most_running == 2


def test_a_service_that_hangs_does_not_hold_all_threads(
    serve_moderation: Callable[[Answer], ModerationServer],
) -> None:
    gate = threading.Event()
    policy = policy_for(
        serve_moderation(allow_after(gate)).url,
        threads=4,
        moderation_calls=1,
        moderation_timeout_seconds=20,
        moderation_failure="open",
    )
    with ThreadPoolExecutor(2) as pool:
        checks = [pool.submit(policy.check, PROMPT) for _ in range(2)]
        places = policy._moderation._places  # type: ignore[union-attr]
        wait_until(lambda: places._value == 0)
        with pytest.raises(ModerationUnavailable, match="Too many"):
            policy.check(PROMPT)
        gate.set()
        for check in checks:
            check.result(10)
    policy.check(PROMPT)


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"moderation_url": "http:///path"}, "MODERATION_URL"),
        ({"moderation_url": "http://user:hidden@host/"}, "MODERATION_URL"),
        ({"moderation_url": "http://host:port/"}, "MODERATION_URL"),
        ({"moderation_url": "http://host/", "moderation_secret": "line\nline"}, "MODERATION_SECRET"),
    ],
)
def test_a_wrong_setting_stops_the_start(settings: dict[str, Any], variable: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        PromptPolicy(Config(**settings))
    assert f"AUDIOCRAFT_API_{variable}" in str(refusal.value)
    assert "hidden" not in str(refusal.value)
    assert "line" not in str(refusal.value)
