"""A private Redis server for tests, on its own port and directory, which tests can kill and restart."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path


class RedisServer:
    """Writes an append-only file to `directory`. `start` returns when the server accepts connections."""

    def __init__(self, directory: Path, *, appendonly: bool = True) -> None:
        self._directory = directory
        self._appendonly = "yes" if appendonly else "no"
        self._process: subprocess.Popen[str] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory), "--save", ""]
        arguments += ["--appendonly", self._appendonly, "--appendfsync", "always"]
        self._process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        log = []
        for line in self._process.stdout:
            log.append(line)
            if "Ready to accept connections" in line:
                return
        raise AssertionError(f"Redis did not start: {''.join(log)}")

    def kill(self) -> None:
        """Kill the server, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
