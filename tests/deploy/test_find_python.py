"""scripts/find-python finds an interpreter that has what is needed, or says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "find-python"


def find_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script where the interpreter of the tests is the only one of its version."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        [SCRIPT, *arguments], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_a_package_can_be_required() -> None:
    found = find_python("--with", "torch")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).parent == Path(sys.executable).parent


def test_a_package_that_no_python_has_is_named() -> None:
    found = find_python("--with", "no_such_package")
    assert found.returncode == 1
    assert "with no_such_package is required, and none was found" in found.stderr
