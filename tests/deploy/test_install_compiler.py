"""`scripts/install-compiler`: where no compiler is found, the one in the package ziglang is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in for pip and uv, and prints the requirements that it is asked for.
INSTALLER = """#!/bin/sh
[ "$1" = config ] && exit
while [ $# -gt 1 ]; do [ "$1" = -r ] && cat "$2"; shift; done
exit ${STATUS:-0}
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory with what scripts need, and a virtual environment without packages beside it."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("sh", "awk", "basename", "cat", "dirname", "sed", "tail"):
        (directory / name).symlink_to(shutil.which(name) or name)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name, script in {"pip": INSTALLER, "uv": INSTALLER, "python": "#!/bin/sh\nexit 1\n"}.items():
        write_program(tmp_path / "venv" / "bin" / name, script)
    return directory


def write_program(path: Path, script: str = "#!/bin/sh\n") -> None:
    path.write_text(script)
    path.chmod(0o755)


def install(programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts" / "install-compiler", programs.parent / "venv"]
    return subprocess.run(command, env={"PATH": str(programs)} | variables, capture_output=True, text=True, check=False)


def test_without_a_compiler_ziglang_is_installed_by_its_hashes(programs: Path) -> None:
    done = install(programs)
    assert done.returncode == 0, done.stderr
    locked = [line for line in done.stdout.splitlines() if "==" in line or "--hash" in line]
    assert locked[0].startswith("ziglang==")
    assert len(locked) > 1
    assert all(line.strip().startswith("--hash=sha256:") for line in locked[1:])


@pytest.mark.parametrize("compiler", ["g++", "clang++", "c++"])
def test_with_a_compiler_nothing_is_installed(programs: Path, compiler: str) -> None:
    write_program(programs / compiler)
    done = install(programs)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_compiler_that_cxx_names_counts(programs: Path) -> None:
    write_program(programs / "icpx")
    assert install(programs, CXX="icpx").stdout == ""


def test_an_installed_ziglang_is_not_installed_again(programs: Path) -> None:
    write_program(programs.parent / "venv" / "bin" / "python")
    assert install(programs).stdout == ""


def test_a_failed_installation_is_a_warning(programs: Path) -> None:
    done = install(programs, STATUS="1")
    assert done.returncode == 0
    assert "Warning: it could not be installed" in done.stderr


def test_make_installs_a_compiler_before_it_builds_the_kernels() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "build/.native", "PYTHON=python3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.index("scripts/install-compiler") < done.stdout.index("engine.cpu.native.build")
