"""Starts gunicorn for a measurement, on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.load import Connection

START_SECONDS = 30.0


@contextmanager
def serve(app: str = "app:app", **settings: object) -> Iterator[tuple[tuple[str, int], int]]:
    """Serve `app` with AUDIOCRAFT_API_<SETTING> set until the block ends; yield its address and the worker's PID."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    with tempfile.TemporaryDirectory() as directory:
        defaults = {
            "bind": f"{address[0]}:{address[1]}",
            "audio_dir": Path(directory, "audio"),
            "task_db": Path(directory, "tasks.sqlite3"),
            "state_db": Path(directory, "state.sqlite3"),
            "log_level": "WARNING",
        }
        variables = {f"AUDIOCRAFT_API_{name.upper()}": str(value) for name, value in {**defaults, **settings}.items()}
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", app]
        process = subprocess.Popen(command, env={**os.environ, **variables})
        try:
            _await_health(address, process)
            yield address, _worker_pid(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_health(address: tuple[str, int], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            Connection(address).request("GET", "/health")
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("the server did not start")


def _worker_pid(parent: int) -> int:
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])
