"""A listener beside the public one, for the operator: `/health`, `/ready` and `/metrics`, from a thread of its own.

It shares no pool with the clients, so none of them can starve it; nor can those that stall here, since the oldest
connection makes room for the newest. It asks for no key: it belongs on a private address.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from audiocraft_api.config import ConfigError
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.telemetry.health import Health
from audiocraft_api.telemetry.metrics import CONTENT_TYPE, Metrics

MAX_CONNECTIONS = 64
STALL_SECONDS = 5.0
BACKLOG = 128

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a path is answered with."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    retry_after_seconds: float | None = None


Answers = Mapping[str, Callable[[], Answer]]  # by path


def admin_answers(health: Health, metrics: Metrics) -> Answers:
    """Return what the listener answers for one process."""

    def ready() -> Answer:
        try:
            health.check_ready()
        except Unavailable as error:
            body = _json({"error": error.message, "code": error.code})
            return Answer(body, error.status, retry_after_seconds=error.retry_after_seconds)
        return Answer(_json({"status": "ready"}))

    return {
        "/health": lambda: Answer(_json({"status": "healthy"} | health.report())),
        "/ready": ready,
        "/metrics": lambda: Answer(metrics.render(), content_type=CONTENT_TYPE),
    }


def listen(bind: str) -> socket.socket:
    """Open the port of `Config.admin_bind`. Raises ConfigError."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    try:
        if int(port) > 65_535:
            raise OSError("the port must be at most 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"AUDIOCRAFT_API_ADMIN_BIND={bind}: the admin listener cannot listen there: {error}"
        ) from None
    # Two processes may hold it while one takes over from the other: who loses the race for a connection must not wait.
    listening.setblocking(False)
    return listening


class AdminListener:
    """Answers from `start` to `close`."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._server: _Server | None = None

    def start(self, listening: socket.socket) -> None:
        """Serve on an open port; threads do not survive a fork."""
        self._server = _Server(listening, self._answers)
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="admin-listener", daemon=True).start()

    def close(self) -> None:
        """Close the port. Again, or before `start`, it does nothing."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, answers: Answers) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.answers = answers
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}  # the oldest first

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes and ends
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("A connection of the admin listener broke.", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One request a connection (HTTP/1.0)."""

    server: _Server
    timeout = STALL_SECONDS
    server_version, sys_version = "audiocraft-api", ""
    error_content_type = "application/json"
    error_message_format = '{"error": "GET /health, /ready and /metrics are answered here.", "code": "not_found"}'

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(404)
        else:
            self._send(self._made(answer))

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: it is asked every few seconds."""

    def _made(self, answer: Callable[[], Answer]) -> Answer:
        try:
            return answer()
        except Exception:
            logger.exception("The admin listener could not answer %s.", self.path)
            return Answer(_json({"error": "The log has the cause.", "code": "internal_error"}), 500)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.retry_after_seconds is not None:
            self.send_header("Retry-After", str(max(1, math.ceil(answer.retry_after_seconds))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
