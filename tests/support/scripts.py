"""Runs the scripts of this directory in processes of their own, so that a crash or a leak fails only the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import audiocraft_api


def run_support(script: str, argument: Path) -> dict[str, Any]:
    """Run a script of tests/support and return the JSON that it prints."""
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), str(argument)],
        env={"PYTHONPATH": str(Path(audiocraft_api.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    report: dict[str, Any] = json.loads(process.stdout)
    return report
