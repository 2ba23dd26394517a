"""Notices a client that has left, by looking at its socket. Knows no framework beyond the WSGI environment's keys."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

# Where gunicorn and Werkzeug's development server put a request's socket.
SOCKET_KEYS = ("gunicorn.socket", "werkzeug.socket")


def connection_of(environ: Mapping[str, Any]) -> Any:
    """Return the socket of a request, None where the server does not tell."""
    return next((environ[key] for key in SOCKET_KEYS if key in environ), None)


def client_gone(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """Return a function that says whether the client of this request has closed its connection.

    Without a socket nobody can tell, and the answer is always no. A client that shuts down its sending side alone
    counts as gone: no HTTP client does.
    """
    connection = connection_of(environ)
    if connection is None:
        return lambda: False

    def gone() -> bool:
        try:
            return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
        except BlockingIOError:
            return False  # open, and nothing to read: the client waits
        except ValueError:
            return False  # a TLS socket cannot be peeked at
        except OSError:
            return True

    return gone
