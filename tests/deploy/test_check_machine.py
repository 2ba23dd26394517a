"""`scripts/check-machine`, with programs that describe a small and a large machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check-machine"


@pytest.mark.parametrize(
    ("gigabytes_of_memory", "gigabytes_free", "words"),
    [(16, 100, []), (2, 100, ["memory"]), (16, 5, ["disk"]), (2, 5, ["memory", "disk"])],
)
def test_little_memory_and_little_disk_space_are_reported(
    tmp_path: Path, gigabytes_of_memory: int, gigabytes_free: int, words: list[str]
) -> None:
    programs = {
        "getconf": f"[ $1 = PAGE_SIZE ] && echo 4096 || echo {gigabytes_of_memory * 10**9 // 4096}",
        "df": f"echo 'Filesystem blocks used free'; echo 'disk 0 0 {gigabytes_free * 10**9 // 1024} 0% /'",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [SCRIPT], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    warnings = done.stderr.splitlines()
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_an_unknown_machine_gives_no_warning(tmp_path: Path) -> None:
    for name in ("getconf", "df"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [SCRIPT], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
