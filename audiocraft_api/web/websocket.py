"""What flask-sock does not cover: checking the handshake, and ending slow, silent and hostile clients.

Knows the handshake and the socket, nothing of the messages.
"""

from __future__ import annotations

import base64
import functools
import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from flask import Request
from simple_websocket import ConnectionClosed, Server

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Forbidden, InvalidRequest
from audiocraft_api.web.auth import WEBSOCKET_PROTOCOL
from audiocraft_api.web.disconnect import SOCKET_KEYS

# Bytes that a client may send beyond one message of the largest size: a cancel message, pongs, the closing handshake.
EXTRA_BYTES = 65_536
CLOSE_TIMEOUT_SECONDS = 1.0  # for the client's half of the closing handshake


def server_options(config: Config) -> dict[str, Any]:
    """Return the options of simple-websocket's `Server`."""
    return {
        # A client that has not answered a ping when the next one is due counts as disconnected.
        "ping_interval": config.server.socket_timeout_seconds / 2,
        "subprotocols": [WEBSOCKET_PROTOCOL],
        "max_message_size": config.audio.max_json_bytes,
        "thread_class": functools.partial(threading.Thread, daemon=True),
    }


def check_handshake(request: Request, cors_origins: Sequence[str]) -> None:
    """Raise InvalidRequest unless this is a WebSocket handshake, and Forbidden for a page of a foreign origin.

    Browsers let any page open a WebSocket and only report the page's origin; other clients send none.
    """
    try:
        key = base64.b64decode(request.headers.get("Sec-WebSocket-Key", ""), validate=True)
    except ValueError:
        key = b""
    if len(key) != 16 or request.headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidRequest("Expected a WebSocket handshake (Sec-WebSocket-Version: 13).")
    origin = request.headers.get("Origin")
    if origin is None or _host_of(origin) == request.host.lower():
        return
    if not any(_is_origin(origin, allowed) for allowed in cors_origins):
        raise Forbidden("This server does not accept WebSockets from pages of this origin.")


def prepare_socket(environ: dict[str, Any], max_received_bytes: int, bytes_per_second: float = 0.0) -> None:
    """Replace the request's socket with a `BoundedSocket`, and disable compression.

    Audio does not compress, and a small compressed message may expand to gigabytes.
    """
    environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    for key in SOCKET_KEYS:
        if key in environ:
            environ[key] = BoundedSocket(environ[key], max_received_bytes + EXTRA_BYTES, bytes_per_second)


def close_websocket(ws: Server, code: int, text: str = "") -> None:
    """Send a close frame, give the client time to send its own, then end the connection and the receiving thread.

    wsproto cuts off `text` after 123 bytes, the most that a close frame can have.
    """
    with suppress(ConnectionClosed, OSError):
        ws.close(code, text or None)
    ws.thread.join(CLOSE_TIMEOUT_SECONDS)
    with suppress(OSError):
        ws.sock.shutdown(socket.SHUT_RDWR)
    ws.thread.join(CLOSE_TIMEOUT_SECONDS)


class BoundedSocket:
    """A socket whose `send` is atomic and complete, and which receives a bounded number of bytes.

    It receives `max_received_bytes` in total, or, with `bytes_per_second`, in a burst and this rate on average.
    simple-websocket sends from two threads, ignores a send that the socket's timeout cut short, and buffers every
    message until it is read.
    """

    def __init__(self, inner: socket.socket, max_received_bytes: int, bytes_per_second: float = 0.0) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._broken = False
        self._max_received_bytes = self._num_left = max_received_bytes
        self._bytes_per_second, self._counted_at = bytes_per_second, time.monotonic()

    def send(self, data: bytes) -> int:
        with self._lock:
            if self._broken:
                raise BrokenPipeError("an earlier message was sent only in part")
            self._broken = True
            self._inner.sendall(data)
            self._broken = False
        return len(data)

    def recv(self, num_bytes: int) -> bytes:
        data = self._inner.recv(num_bytes)
        now = time.monotonic()
        if refill := int((now - self._counted_at) * self._bytes_per_second):
            self._num_left, self._counted_at = min(self._max_received_bytes, self._num_left + refill), now
        self._num_left -= len(data)
        if self._num_left < 0:
            raise ConnectionAbortedError("the client sent too many bytes")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_origin(origin: str, allowed: str) -> bool:
    """Match an entry of the setting as flask-cors does: `*`, an origin, or a regular expression."""
    if allowed == "*" or allowed.lower() == origin.lower():
        return True
    return not set(allowed).isdisjoint("*\\]?$^[]()") and re.match(allowed, origin, re.IGNORECASE) is not None
