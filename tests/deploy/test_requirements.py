"""The service runs with the packages of its lock alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.distributions import hide_all_but, locked

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / "requirements.txt"
EXCLUDED = ROOT / "requirements-excluded.in"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that sees what the lock installs, and none of the tests' packages."""
    hiding = hide_all_but(locked(LOCK), tmp_path_factory.mktemp("hiding"))
    return {**os.environ, "PYTHONPATH": f"{hiding}:{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def test_packages_that_the_lock_leaves_out_are_hidden(environment: dict[str, str]) -> None:
    hidden = "import importlib.util; print(*map(importlib.util.find_spec, ['sklearn', 'networkx', 'pytest', 'moto']))"
    done = subprocess.run([sys.executable, "-c", hidden], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"] * 4


def test_the_lock_leaves_out_what_is_listed() -> None:
    lines = EXCLUDED.read_text().splitlines()
    assert not {line for line in lines if line and not line.startswith("#")} & locked(LOCK)


def test_every_kind_of_model_and_request_works_with_the_packages_of_the_lock(
    environment: dict[str, str], demo_checkpoints: Path, separator_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for directory in (*demo_checkpoints.iterdir(), *separator_directory.iterdir()):
        (tmp_path / "checkpoints" / directory.name).symlink_to(directory)
    done = subprocess.run(
        [sys.executable, "-m", "support.all_routes", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
