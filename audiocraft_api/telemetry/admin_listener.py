"""The admin listener: serves `/health`, `/ready` and `/metrics` to operators on a separate port.

It has its own threads, so clients of the public port cannot starve it. Stalled connections cannot starve it either:
at the maximum, a new connection closes the oldest one. It requires no key, so bind it to a private address.
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
class AdminResponse:
    """The response of an endpoint."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    retry_after_seconds: float | None = None


Endpoints = Mapping[str, Callable[[], AdminResponse]]  # by path


def admin_endpoints(health: Health, metrics: Metrics) -> Endpoints:
    """Return the endpoints of one process."""

    def ready() -> AdminResponse:
        try:
            health.check_ready()
        except Unavailable as error:
            body = _json({"error": error.message, "code": error.code})
            return AdminResponse(body, error.status, retry_after_seconds=error.retry_after_seconds)
        return AdminResponse(_json({"status": "ready"}))

    return {
        "/health": lambda: AdminResponse(_json({"status": "healthy"} | health.report())),
        "/ready": ready,
        "/metrics": lambda: AdminResponse(metrics.render(), content_type=CONTENT_TYPE),
    }


def listen(bind: str) -> socket.socket:
    """Open the listening socket for `config.telemetry.admin_bind`. Raises ConfigError."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    try:
        if int(port) > 65_535:
            raise OSError("the port must be at most 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"AUDIOCRAFT_API_ADMIN_BIND={bind}: cannot listen on this address: {error}") from None
    # Two processes may share the socket while one replaces the other; the loser of a race to accept must not block.
    listening.setblocking(False)
    return listening


class AdminListener:
    """Serves endpoints from `start` to `close`. Closes connections that send nothing for `stall_seconds`."""

    def __init__(self, endpoints: Endpoints, stall_seconds: float = STALL_SECONDS) -> None:
        self._endpoints = endpoints
        self._stall_seconds = stall_seconds
        self._server: _Server | None = None

    def start(self, listening: socket.socket) -> None:
        """Serve on a listening socket. Call after a fork, because threads do not survive it."""
        self._server = _Server(listening, self._endpoints, self._stall_seconds)
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="admin-listener", daemon=True).start()

    def close(self) -> None:
        """Close the listening socket. Idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, endpoints: Endpoints, stall_seconds: float) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.endpoints = endpoints
        self.stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}  # oldest first

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # wakes its thread, which ends
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("A connection of the admin listener failed.", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Handles one request per connection (HTTP/1.0)."""

    server: _Server
    server_version, sys_version = "audiocraft-api", ""
    error_content_type = "application/json"
    error_message_format = '{"error": "This port serves GET /health, /ready and /metrics.", "code": "not_found"}'

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.stall_seconds)

    def do_GET(self) -> None:
        endpoint = self.server.endpoints.get(self.path.partition("?")[0])
        if endpoint is None:
            self.send_error(404)
        else:
            self._send(self._call(endpoint))

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because scrapes arrive every few seconds."""

    def _call(self, endpoint: Callable[[], AdminResponse]) -> AdminResponse:
        try:
            return endpoint()
        except Exception:
            logger.exception("The admin listener failed to serve %s.", self.path)
            return AdminResponse(
                _json({"error": "An internal error occurred. See the log for its cause.", "code": "internal_error"}),
                500,
            )

    def _send(self, response: AdminResponse) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        if response.retry_after_seconds is not None:
            self.send_header("Retry-After", str(max(1, math.ceil(response.retry_after_seconds))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
