"""gunicorn's threaded worker, hardened: no client stalls the others, and a stop drains running requests.

Overrides internals of gunicorn 27.0.1, for which gunicorn has no settings; each override names the test in
tests/web/test_server.py that fails without it. A proxy that buffers requests, such as nginx, would replace the ones
against slow clients. The server refuses to start on another version of gunicorn. Knows gunicorn and `Services.close`;
the routes know nothing of it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import secrets
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import gunicorn
from gunicorn.glogging import Logger
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers import base, gthread

from audiocraft_api.services import Services
from audiocraft_api.web.services import services_of

SUPPORTED_VERSION = "27.0.1"
# How long a thread waits for a new connection's first byte before the connection waits outside of the thread pool.
# With gunicorn's 5 s, as many idle connections as there are threads stop the server for 5 s. No public setting.
# Test: test_idle_and_stalled_connections_do_not_hold_up_health.
FIRST_BYTE_SECONDS = 0.05
# The same while the worker stops, when gunicorn drops connections that wait outside of the thread pool.
# Test: test_connections_established_before_a_stop_get_their_responses.
LAST_BYTES_SECONDS = 2.0
LINGER_SECONDS = 1.0
_SO_ATTACH_FILTER = 26  # of Linux; the module `socket` has no name for it
DRAIN_SHARE = 0.8  # of the graceful timeout; the rest is for the responses of requests that were ended


class ServerLog(Logger):  # type: ignore[misc]
    """Leaves format and handlers to `logs.configure_logging`, and the access log to the app."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.addFilter(_without_traceback_of_stalls)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """One process, many threads."""

    # The admin listener's open socket, which the master owns and every worker inherits.
    admin_socket: socket.socket | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Exit unless this is the version of gunicorn that the overrides were written for."""
        if gunicorn.__version__ != SUPPORTED_VERSION:
            sys.exit(
                f"gunicorn {gunicorn.__version__} is not supported: the worker overrides internals of gunicorn "
                f"{SUPPORTED_VERSION}. Install the locked version with: pip install gunicorn=={SUPPORTED_VERSION}"
            )
        super().check_config(cfg, log)

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
        """Serve a request of a connection, from a thread of the pool, with a time limit for stalls.

        gunicorn has no setting for it. Test: test_a_connection_that_stalls_in_its_body_gets_a_response_and_is_closed.
        """
        seconds = self.services.config.server.socket_timeout_seconds
        # A kernel timeout, because gunicorn resets Python's own timeout of the socket before each request.
        timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        keep = super().handle(conn)
        if not keep:
            _linger(conn.sock)
        return keep

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to malformed HTTP in the shape of every other error.

        gunicorn has no setting for it. Test: test_malformed_http_is_refused_in_the_common_error_format.
        """
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        status, reason, code = 400, "Bad Request", "invalid_request"
        if isinstance(exc, LimitRequestLine):
            status, reason, code = 414, "URI Too Long", "uri_too_long"
        elif isinstance(exc, LimitRequestHeaders):
            status, reason, code = 431, "Request Header Fields Too Large", "headers_too_large"
        request_id = secrets.token_hex(8)
        self.log.info("Refused a malformed HTTP request, as %s: %s", request_id, str(exc)[:200])
        self.services.telemetry.metrics.count_error(code)
        content = {
            "error": f"The server could not parse the HTTP request: {reason}.",
            "code": code,
            "request_id": request_id,
        }
        body = json.dumps(content).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"X-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\n{self._cors_headers()}\r\n"
        )
        with suppress(OSError):
            client.sendall(head.encode() + body)

    def _cors_headers(self) -> str:
        """Return CORS headers for a response to a request that could not be parsed.

        The header must name the origin of the request, which is unknown. So there is none if several are allowed.
        """
        origins = self.services.config.server.cors_origins
        if len(origins) != 1:
            return ""
        vary = "" if origins[0] == "*" else "Vary: Origin\r\n"
        return f"Access-Control-Allow-Origin: {origins[0]}\r\n{vary}Access-Control-Expose-Headers: X-Request-ID\r\n"

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections; refuse new connections as soon as the worker stops.

        gunicorn keeps the listening socket open until the last request has ended. Clients would connect in that time,
        get no response and be cut off; when they are refused, a proxy tries another server.
        Test: test_sigterm_lets_running_requests_finish_and_refuses_new_ones.
        """
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                ignore_new_connections(listener)
                self._accept_pending(listener)
                listener.close()

    def _accept_pending(self, listener: Any) -> None:
        """Accept the connections that the kernel has already established; closing the listener would reset them.

        Test: test_connections_established_before_a_stop_get_their_responses.
        """
        num_connections = -1
        with suppress(OSError):  # out of file descriptors
            while self.nr_conns != num_connections:
                num_connections = self.nr_conns
                self.accept(listener)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Start a graceful stop (SIGTERM): drain the engine while gunicorn lets requests finish.

        Test: test_a_request_that_outlasts_the_grace_period_gets_503.
        """
        gthread.DEFAULT_WORKER_DATA_TIMEOUT = LAST_BYTES_SECONDS
        if self.alive and hasattr(self, "wsgi"):
            grace_seconds = self.cfg.graceful_timeout * DRAIN_SHARE
            threading.Thread(target=self.services.close, args=(grace_seconds,), name="drain").start()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Exit immediately (SIGINT, SIGQUIT), as workers without a thread pool do.

        gthread's handler first shuts down the pool, and deadlocks if the interrupted code holds the pool's lock.
        Test: test_sigquit_exits_even_while_the_lock_of_the_thread_pool_is_held.
        """
        base.Worker.handle_quit(self, sig, frame)


def ignore_new_connections(listener: socket.socket) -> None:
    """Let the kernel drop requests for new connections to a socket, on Linux; established ones can be accepted.

    A connection established between the last `accept` and `close` would be reset, and a proxy does not send its request
    to another server. A client whose request for a connection is dropped repeats it, and is refused after `close`.
    Test: test_a_connection_is_accepted_or_refused_but_not_reset.
    """
    if sys.platform != "linux":
        return
    # In the language of the Berkeley packet filter: load the flags of the TCP header, keep SYN and ACK, and drop the
    # packet if only SYN is set.
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),
            (0x54, 0, 0, 0x12),
            (0x15, 0, 1, 0x02),
            (0x06, 0, 0, 0),
            (0x06, 0, 0, 0xFFFFFFFF),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    with suppress(OSError):
        option = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def _linger(connection: socket.socket) -> None:
    """Wait for the client to read the response and close, in this thread instead of gunicorn's main loop.

    gunicorn waits up to 2 s per connection in its main loop, which stops the whole server.
    Test: test_idle_and_stalled_connections_do_not_hold_up_health.
    """
    until = time.monotonic() + LINGER_SECONDS
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break
        connection.shutdown(socket.SHUT_RDWR)  # ends gunicorn's own wait immediately


def _without_traceback_of_stalls(record: logging.LogRecord) -> bool:
    """Log one line for a client that stalled: clients must not be able to fill the log with tracebacks.

    Test: test_a_connection_that_stalls_in_its_body_gets_a_response_and_is_closed.
    """
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
        record.msg, record.args, record.exc_info = "Closed a connection that stalled.", (), None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True
