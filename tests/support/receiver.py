"""A target for webhooks: an HTTP server on loopback that records requests and responds with given statuses."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass(frozen=True)
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def verify(self) -> None:
        """Check the signature against an independent implementation of Standard Webhooks."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert hmac.compare_digest(wanted, self.headers["webhook-signature"])
        assert abs(time.time() - int(self.headers["webhook-timestamp"])) < 60


class Receiver:
    """Responds to call number n with `statuses[n]`, then with 200. Calls `before` before each response."""

    def __init__(
        self,
        *statuses: int,
        port: int = 0,
        before: Callable[[BaseHTTPRequestHandler], None] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.received: list[Received] = []
        self._statuses = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(headers, body))
                if before:
                    before(self)
                self.send_response(receiver._statuses.pop(0) if receiver._statuses else 200)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # the sender closed the connection
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/hook?a=b"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def recover(self) -> None:
        """Respond with 200 from now on."""
        self._statuses.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
