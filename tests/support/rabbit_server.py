"""A private RabbitMQ server for tests, on its own ports and directory. Needs Debian's package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support.served import free_port

PROGRAM = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # the one on the PATH requires the system's user and directories


class RabbitServer:
    """A server that `start` starts; it returns when the server accepts connections, after some seconds."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._environ = os.environ | {
            "HOME": str(directory),  # for the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(directory),
            "RABBITMQ_LOG_BASE": str(directory),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([PROGRAM], env=self._environ, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        log = []
        for line in self._process.stdout:
            log.append(line)
            if "Server startup complete" in line:
                return
        raise AssertionError(f"RabbitMQ did not start: {''.join(log)}")

    def stop(self) -> None:
        """Stop the server, and the name server that it started."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            subprocess.run(["epmd", "-kill"], env=self._environ, capture_output=True, check=True)
            self._process = None
