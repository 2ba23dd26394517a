"""Detects that a client disconnected by peeking at its socket. Knows of WSGI servers only the environment keys."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

# Environment keys under which gunicorn and Werkzeug's development server provide a request's socket.
SOCKET_KEYS = ("gunicorn.socket", "werkzeug.socket")


def connection_of(environ: Mapping[str, Any]) -> Any:
    """Return the socket of a request; None if the server does not provide it."""
    return next((environ[key] for key in SOCKET_KEYS if key in environ), None)


def client_gone(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """Return a function that returns whether the client of this request has closed its connection.

    Always False if the server does not provide the socket. A client that shuts down only its sending side counts as
    disconnected; HTTP clients do not do that.
    """
    connection = connection_of(environ)
    if connection is None:
        return lambda: False

    def gone() -> bool:
        try:
            return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
        except BlockingIOError:
            return False  # open with nothing to read: the client is waiting
        except ValueError:
            return False  # TLS sockets do not support peeking
        except OSError:
            return True

    return gone
