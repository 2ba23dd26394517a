"""Starts a real gunicorn on a free port, for tests of the server itself.

`gunicorn -c gunicorn.conf.py support.served:app` serves an app with a fake engine. Its requests keep running as long as
the file named by `AUDIOCRAFT_TEST_HOLD` exists.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from audiocraft_api.config import load_config, variable_name
from audiocraft_api.factory import create_app
from support.fakes import FakeCache, FakeEngine

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 60.0


class Server:
    """A running gunicorn."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.url = f"http://{host}:{port}"
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str, timeout: float = 60.0, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=timeout, **options)

    def post(self, path: str, timeout: float = 60.0, **options: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=timeout, **options)

    def delete(self, path: str, timeout: float = 60.0) -> requests.Response:
        return requests.delete(self.url + path, timeout=timeout)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def num_running(self) -> int:
        return int(self.get("/health").json()["queue"]["running"])

    def terminate(self, timeout: float = 30.0) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        return self.process.wait(timeout)

    def worker_pid(self) -> int | None:
        """Return the process id of the worker, or None if no worker is running."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True)
        return int(children.stdout.split()[0]) if children.stdout.split() else None

    def kill(self) -> None:
        """Kill the master and the worker with SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once `condition()` is true; fail after `seconds`, which only a busy machine comes near."""
    until = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < until, f"the condition was not met within {seconds} s"
        pause.wait(0.01)


@contextmanager
def paused(*files: Path) -> Iterator[None]:
    """Pause the fake engines of servers whose directories contain these files, which are named `hold`."""
    for file in files:
        file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)


@contextmanager
def serve(
    directory: Path,
    app: str = "app:app",
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    root: Path = ROOT,
    **settings: Any,
) -> Iterator[Server]:
    """Start gunicorn in `root` as `make run` does, on a free port by default, and stop it at the end."""
    port = port or free_port()
    log = directory / "server.log"
    own = {"audio_dir": directory / "audio"}
    own |= {"import_at_start": False}  # the first generation imports; tests without one save the time
    own |= {"task_db": directory / "tasks.sqlite3", "state_db": directory / "state.sqlite3"}
    settings = {"bind": f"{host}:{port}", **own} | settings
    environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
    environ |= {
        "PYTHONPATH": str(ROOT / "tests"),
        "AUDIOCRAFT_TEST_HOLD": str(directory / "hold"),
        "HF_HOME": str(directory / "hub"),  # ignore models downloaded on this machine
        "OMP_NUM_THREADS": "1",
    }
    command = [Path(sys.executable).parent / "gunicorn", "-c", "gunicorn.conf.py", app]
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=root, env=environ, stdout=output, stderr=output, start_new_session=True)
    server = Server(process, host, port, log)
    try:
        wait_until(lambda: _has_started(server), START_SECONDS)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def responds_ok(url: str) -> bool:
    """Return whether a server responds to `GET url` with status 200."""
    try:
        return requests.get(url, timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def _has_started(server: Server) -> bool:
    assert server.process.poll() is None, server.log
    return responds_ok(server.url + "/health")


class FileGate:
    """A gate that is closed as long as a file exists."""

    def __init__(self, hold: Path) -> None:
        self._hold = hold

    def wait(self, seconds: float) -> bool:
        if not self._hold.exists():
            return True
        threading.Event().wait(seconds)
        return False


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    engine = FakeEngine(gate=FileGate(Path(os.environ["AUDIOCRAFT_TEST_HOLD"])))
    return create_app(load_config(), engine=engine, cache=FakeCache())
