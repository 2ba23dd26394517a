"""Celery worker processes for tests, which can kill them. The module is also an app with a fake engine.

`celery -A support.celery_worker worker` generates tones; each takes `AUDIOCRAFT_TEST_SECONDS`, and does not finish
while the file `AUDIOCRAFT_TEST_HOLD` exists.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from audiocraft_api.celery_app import create_celery_app
from audiocraft_api.config import variable_name
from support.fakes import FakeEngine
from support.served import ROOT, FileGate

FAKE = "support.celery_worker"


class CeleryProcess:
    """A worker process; `settings` are those of the server."""

    def __init__(self, log: Path, hold: Path, app: str = FAKE, *, seconds: float = 0.0, **settings: Any) -> None:
        self._command = [Path(sys.executable).parent / "celery", "-A", app, "worker", "-P", "threads"]
        self._environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
        self._environ |= {
            "PYTHONPATH": str(ROOT / "tests"),
            "PYTHONWARNINGS": "ignore",
            "AUDIOCRAFT_TEST_HOLD": str(hold),
            "AUDIOCRAFT_TEST_SECONDS": str(seconds),
            "OMP_NUM_THREADS": "1",
        }
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        """Start the process; it runs tasks some seconds later."""
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environ, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self) -> None:
        """Kill the process, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self, timeout: float = 30.0) -> int:
        """Send SIGTERM and return the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout)


class SlowGate:
    """A gate that delays each generation by `seconds`."""

    def __init__(self, gate: FileGate, seconds: float) -> None:
        self._gate = gate
        self._seconds = seconds

    def wait(self, seconds: float) -> bool:
        threading.Event().wait(self._seconds)
        return self._gate.wait(seconds)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    gate = SlowGate(FileGate(Path(os.environ["AUDIOCRAFT_TEST_HOLD"])), float(os.environ["AUDIOCRAFT_TEST_SECONDS"]))
    globals()["app"] = create_celery_app(engine=FakeEngine(gate=gate))
    return globals()["app"]
