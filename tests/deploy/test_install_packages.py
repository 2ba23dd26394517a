"""`scripts/install-packages`, with programs in place of pip and uv that record what they are asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install-packages"
LOCK = """\
torch==2.0.0 \\
    --hash=sha256:1
torchaudio==2.0.0 ; sys_platform == 'linux' \\
    --hash=sha256:2
nvidia-cublas-cu12==1.0 \\
    --hash=sha256:3
torchmetrics==1.0 \\
    --hash=sha256:4
wheel==1.0 \\
    --hash=sha256:5
"""
# Records its arguments and the names of the packages in the file after -r.
RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >>"$RECORD"
[ "$1" = config ] && { echo "global.index-url='$INDEX'"; exit; }
while [ $# -gt 1 ]; do [ "$1" = -r ] && sed -n 's/==.*//p' "$2" >>"$RECORD"; shift; done
[ "$(basename "$0")" = pip ] || [ -z "${UV_FAILS:-}" ]
"""


class Installation:
    """A virtual environment with recorders in place of its programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "venv" / "bin").mkdir(parents=True)
        (directory / "lock.txt").write_text(LOCK)
        (directory / "programs").mkdir()  # which has no uv
        for name in ("sh", "awk", "basename", "dirname", "sed", "tail"):
            (directory / "programs" / name).symlink_to(shutil.which(name) or name)
        self.add_program("pip")

    def add_program(self, name: str) -> None:
        program = self.directory / "venv" / "bin" / name
        program.write_text(RECORDER)
        program.chmod(0o755)

    def run(self, **variables: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
        """Return the recorded lines, and the process."""
        record = self.directory / "record"
        record.write_text("")
        environment = {
            "PATH": str(self.directory / "programs"),
            "RECORD": str(record),
            "INDEX": "https://packages.example/simple",
        }
        done = subprocess.run(
            [SCRIPT, self.directory / "venv", self.directory / "lock.txt"],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return record.read_text().splitlines(), done


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_the_build_tools_are_installed_first_then_the_lock_by_its_hashes(installation: Installation) -> None:
    installation.add_program("uv")
    lines, done = installation.run()
    assert done.returncode == 0, done.stderr
    names = [line for line in lines if " " not in line]
    assert names == ["wheel", "torch", "torchaudio", "nvidia-cublas-cu12", "torchmetrics", "wheel"]
    calls = [line for line in lines if line.startswith("uv ")]
    assert len(calls) == 2
    for call in calls:
        assert {"--require-hashes", "--no-deps", "--no-build-isolation"} <= set(call.split())
        assert "--index-url https://packages.example/simple" in call


def test_pip_installs_where_uv_fails(installation: Installation) -> None:
    installation.add_program("uv")
    lines, done = installation.run(UV_FAILS="1")
    assert done.returncode == 0, done.stderr
    calls = [line for line in lines if line.startswith("pip install")]
    assert len(calls) == 2
    for call in calls:
        assert {"--require-hashes", "--no-deps", "--no-build-isolation"} <= set(call.split())


def test_uv_comes_from_the_locked_wheel(installation: Installation) -> None:
    lines, done = installation.run()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("pip install --quiet --require-hashes")
    assert lines[1] == "uv"


def test_torch_without_cuda_comes_from_the_index_that_the_environment_names(installation: Installation) -> None:
    installation.add_program("uv")
    lines, done = installation.run(TORCH="cpu", TORCH_CPU_INDEX="https://torch.example/cpu")
    assert done.returncode == 0, done.stderr
    assert [line for line in lines if " " not in line] == ["wheel", "torchmetrics", "wheel"]
    assert lines[-1].endswith("--index-url https://torch.example/cpu torch==2.0.0+cpu torchaudio==2.0.0+cpu")


def test_torch_without_cuda_needs_the_address_of_an_index(installation: Installation) -> None:
    lines, done = installation.run(TORCH="cpu")
    assert done.returncode != 0
    assert "TORCH_CPU_INDEX: must be the address of PyTorch's package index for CPUs" in done.stderr
    assert lines == []
