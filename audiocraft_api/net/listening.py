"""Checks the address that the server is to listen on."""

from __future__ import annotations

import errno
import os
import socket

from audiocraft_api.config import ConfigError, variable_name


def check_is_free(bind: str) -> None:
    """Raise ConfigError if another program listens on `bind`, a host and a port. gunicorn would try for 5 seconds.

    Does nothing if the process has inherited its socket, or for `unix:` and a path.
    """
    if bind.startswith("unix:") or "GUNICORN_FD" in os.environ or "LISTEN_FDS" in os.environ:
        return
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # gunicorn reports it
            hint = " On macOS, AirPlay Receiver uses port 5000." if port == "5000" else ""
            raise ConfigError(
                f"Port {port} is in use by another program.{hint} Stop that program, or choose another port: "
                f"{variable_name('bind')}={host or '0.0.0.0'}:{int(port) + 1}"
            ) from None
