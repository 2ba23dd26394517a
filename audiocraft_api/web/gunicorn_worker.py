"""gunicorn's threaded worker, made safe to leave alone: no client stalls the others, and a stop drains.

Knows gunicorn and the services' `close`; the routes know nothing of it.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers import base, gthread

from audiocraft_api.services import Services
from audiocraft_api.web.services import services_of

# How long a thread waits for a new connection's first byte; then the connection waits outside the pool. gunicorn's
# own 5 s let as many idle connections as there are threads stop the server for 5 s (tests/test_server.py).
FIRST_BYTE_SECONDS = 0.05
LAST_BYTES_SECONDS = 2.0  # the same, when the worker stops
LINGER_SECONDS = 1.0
DRAIN_SHARE = 0.8  # of the graceful time-out; in the rest, ended requests are answered


class ServerLog(Logger):  # type: ignore[misc]
    """Leaves format and handlers to `logs.configure_logging`; the app logs the requests."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.addFilter(_without_traceback_of_stalls)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """One process, many threads."""

    # The admin listener's open port: the master holds it, so that the next worker finds it free.
    admin_socket: socket.socket | None = None

    def init_process(self) -> None:
        gthread.DEFAULT_WORKER_DATA_TIMEOUT = FIRST_BYTE_SECONDS
        super().init_process()  # serves until the end

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.services.start(self.admin_socket)  # here, after the fork

    @property
    def services(self) -> Services:
        return services_of(self.wsgi)

    def handle(self, conn: Any) -> Any:
        """Serve a request of a connection, from a thread of the pool."""
        seconds = self.services.config.server.socket_timeout_seconds
        # A kernel time-out: gunicorn sets the socket back to blocking before each request.
        timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        keep = super().handle(conn)
        if not keep:
            _linger(conn.sock)
        return keep

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request in the shape of every other error."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        status, reason, code = 400, "Bad Request", "invalid_request"
        if isinstance(exc, LimitRequestLine):
            status, reason, code = 414, "URI Too Long", "uri_too_long"
        elif isinstance(exc, LimitRequestHeaders):
            status, reason, code = 431, "Request Header Fields Too Large", "headers_too_large"
        request_id = secrets.token_hex(8)
        self.log.info("Refused what is not HTTP, as %s: %s", request_id, str(exc)[:200])
        self.services.telemetry.metrics.count_error(code)
        answer = {"error": f"This is not an HTTP request: {reason}.", "code": code, "request_id": request_id}
        body = json.dumps(answer).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"X-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):
            client.sendall(head.encode() + body)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take connections or not; when the worker stops, refuse new ones from now on.

        gunicorn keeps the socket until the last request has ended: clients would connect to nobody all that time,
        and be cut off after it. Refused at once, a proxy goes to another server, having sent nothing.
        """
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                self._take_waiting(listener)
                listener.close()

    def _take_waiting(self, listener: Any) -> None:
        """Accept those whom the kernel has connected already."""
        num_connections = -1
        with suppress(OSError):  # no descriptor is left for more
            while self.nr_conns != num_connections:
                num_connections = self.nr_conns
                self.accept(listener)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin a graceful stop (SIGTERM): drain the engine while gunicorn lets requests finish."""
        # Nobody is left to be held up, and connections that are only late would be dropped.
        gthread.DEFAULT_WORKER_DATA_TIMEOUT = LAST_BYTES_SECONDS
        if self.alive and hasattr(self, "wsgi"):
            grace_seconds = self.cfg.graceful_timeout * DRAIN_SHARE
            threading.Thread(target=self.services.close, args=(grace_seconds,), name="drain").start()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End at once (SIGINT, SIGQUIT), as workers without a pool do.

        gthread's own would stop the pool here first, and wait for ever for a lock that the interrupted code holds.
        """
        base.Worker.handle_quit(self, sig, frame)


def _linger(connection: socket.socket) -> None:
    """Let the client take the answer before the connection is closed, here and not in gunicorn's one main loop.

    gunicorn waits there up to 2 s a connection for the client to close, and serves nobody meanwhile.
    """
    until = time.monotonic() + LINGER_SECONDS
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break
        connection.shutdown(socket.SHUT_RDWR)  # gunicorn's own wait then ends at once


def _without_traceback_of_stalls(record: logging.LogRecord) -> bool:
    """Make one line of a client that stalled: it is no fault of the server, and clients must not fill the log."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
        record.msg, record.args, record.exc_info = "Closed a connection that stalled.", (), None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True
