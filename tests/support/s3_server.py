"""An S3 server for tests over real HTTP: moto's server, behind a gate that records calls and injects faults."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_CONFIG_FILE": "/dev/null",  # tests ignore the settings of this machine's user
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
REGION = "eu-central-1"
DEADLINE_SECONDS = 30.0

# Handles a call, with or without a response. Returning False forwards the call to the store.
Fault = Callable[[BaseHTTPRequestHandler], bool | None]


class S3Server:
    """moto's server, which stores objects in this process."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self.port = self._server.get_host_and_port()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def make_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"test-{uuid.uuid4()}"
        self._backend.create_bucket(name, REGION)
        return name

    def objects(self, bucket: str) -> dict[str, Any]:
        """Return moto's objects in a bucket, by key."""
        return dict(self._backend.buckets[bucket].keys.items())

    def age(self, bucket: str, key: str, seconds: float) -> None:
        """Make an object look `seconds` old."""
        self.objects(bucket)[key].last_modified = datetime.fromtimestamp(time.time() - seconds, UTC).replace(
            tzinfo=None
        )

    def put(self, bucket: str, key: str, body: bytes = b"mine") -> None:
        self._backend.put_object(bucket, key, body)

    def delete(self, bucket: str, key: str) -> None:
        self._backend.delete_object(bucket, key)

    def close(self) -> None:
        self._server.stop()


class Gate:
    """An HTTP server in front of another. It records calls; `faults[n]` handles the n-th call from now."""

    def __init__(self, target_port: int) -> None:
        self.calls: list[tuple[str, str, dict[str, str]]] = []  # method, path with query, headers
        self.faults: list[Fault] = []
        self.opened = threading.Event()  # when set, hanging calls end
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(OSError):  # the client has hung up
                    super().handle_one_request()

            def _handle(self) -> None:
                gate.calls.append((self.command, self.path, dict(self.headers.items())))
                fault = gate.faults.pop(0) if gate.faults else None
                if fault is not None and fault(self) is not False:
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                inner = http.client.HTTPConnection("127.0.0.1", target_port, timeout=DEADLINE_SECONDS)
                inner.request(self.command, self.path, body, dict(self.headers.items()))
                response = inner.getresponse()
                content = response.read()
                inner.close()
                self.send_response_only(response.status, response.reason)
                length = response.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                for name, value in response.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.calls]

    def hang(self, _handler: BaseHTTPRequestHandler) -> None:
        """Accept the call and send no response."""
        self.opened.wait(DEADLINE_SECONDS)

    def drip(self, handler: BaseHTTPRequestHandler) -> None:
        """Send the response one byte at a time, without end."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.opened.wait(0.02):
            handler.wfile.write(b"a")

    def close(self) -> None:
        self.opened.set()
        self._server.shutdown()
        self._server.server_close()


def refuse(status: int, code: str) -> Fault:
    """Return a fault that responds with an error of S3."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No: {code}.</Message></Error>".encode()
        _respond(handler, status, body, "application/xml")

    return respond


def error_page(status: int) -> Fault:
    """Return a fault that responds with an HTML page, as a proxy may."""
    return lambda handler: _respond(handler, status, b"<html><body><h1>Sorry</body>", "text/html")


def pass_on(_handler: BaseHTTPRequestHandler) -> bool:
    """Forward the call to the store."""
    return False


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection after receiving a part of the call."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def truncate(handler: BaseHTTPRequestHandler) -> None:
    """Send the headers and the first bytes of a range, then close the connection."""
    start, end = (int(part) for part in handler.headers["Range"].removeprefix("bytes=").split("-"))
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end}/*\r\nContent-Length: {end - start + 1}"
    handler.wfile.write(f"{head}\r\nContent-Type: audio/wav\r\n\r\nRIFF".encode())


def _respond(handler: BaseHTTPRequestHandler, status: int, body: bytes, media_type: str) -> None:
    handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    handler.send_response_only(status)
    handler.send_header("Content-Type", media_type)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")  # as the gate does after a fault
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
