"""What flask-sock leaves open: who may open a WebSocket, and that slow, silent and hostile clients end.

Knows the handshake and the socket, nothing of what is said.
"""

from __future__ import annotations

import base64
import functools
import re
import socket
import threading
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

# What a client may send in all beyond one message of the largest size: a cancel, pongs, a farewell.
SPARE_BYTES = 65_536
FAREWELL_SECONDS = 1.0  # for the client's half of the closing handshake


def server_options(config: Config) -> dict[str, Any]:
    """Return the options of simple-websocket's `Server`."""
    return {
        # A client that does not answer a ping until the next one is gone.
        "ping_interval": config.server.socket_timeout_seconds / 2,
        "subprotocols": [WEBSOCKET_PROTOCOL],
        "max_message_size": config.audio.max_json_bytes,
        "thread_class": functools.partial(threading.Thread, daemon=True),
    }


def check_handshake(request: Request, cors_origins: Sequence[str]) -> None:
    """Refuse what is no WebSocket handshake (InvalidRequest), and pages of foreign origins (Forbidden).

    Browsers let any page open a WebSocket and say only where it came from; others send no origin.
    """
    try:
        key = base64.b64decode(request.headers.get("Sec-WebSocket-Key", ""), validate=True)
    except ValueError:
        key = b""
    if len(key) != 16 or request.headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidRequest("This is not a WebSocket handshake of version 13.")
    origin = request.headers.get("Origin")
    if origin is None or _host_of(origin) == request.host.lower():
        return
    if not any(_is_origin(origin, allowed) for allowed in cors_origins):
        raise Forbidden("Pages of this origin may not open a WebSocket here.")


def prepare_socket(environ: dict[str, Any], max_received_bytes: int) -> None:
    """Put a `BoundedSocket` in place of the request's socket, and offer the client no compression.

    Audio does not shrink, and a compressed message may be a bomb.
    """
    environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    for key in SOCKET_KEYS:
        if key in environ:
            environ[key] = BoundedSocket(environ[key], max_received_bytes + SPARE_BYTES)


def hang_up(ws: Server, code: int) -> None:
    """Say goodbye, give the client time to do so too, and end the connection and simple-websocket's thread."""
    with suppress(ConnectionClosed, OSError):
        ws.close(code)
    ws.thread.join(FAREWELL_SECONDS)
    with suppress(OSError):
        ws.sock.shutdown(socket.SHUT_RDWR)
    ws.thread.join(FAREWELL_SECONDS)


class BoundedSocket:
    """A socket whose `send` sends everything or raises, one thread at a time, and that does not receive for ever.

    simple-websocket sends from two threads, takes no note of a send that was cut short by the socket's time-out, and
    keeps whatever comes until somebody asks for it.
    """

    def __init__(self, inner: socket.socket, max_received_bytes: int) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._broken = False
        self._num_left = max_received_bytes

    def send(self, data: bytes) -> int:
        with self._lock:
            if self._broken:
                raise BrokenPipeError("an earlier message was cut short")
            self._broken = True
            self._inner.sendall(data)
            self._broken = False
        return len(data)

    def recv(self, num_bytes: int) -> bytes:
        data = self._inner.recv(num_bytes)
        self._num_left -= len(data)
        if self._num_left < 0:
            raise ConnectionAbortedError("the client sends too much")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_origin(origin: str, allowed: str) -> bool:
    """Read a setting as flask-cors does: `*`, an origin, or a regular expression."""
    if allowed == "*" or allowed.lower() == origin.lower():
        return True
    return not set(allowed).isdisjoint("*\\]?$^[]()") and re.match(allowed, origin, re.IGNORECASE) is not None
