"""The native code under the compiler's sanitizers, and without memory.

No access out of bounds, no undefined behavior, no data race, and no failing allocation that ends the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiocraft_api.engine.cpu.native import build

pytestmark = pytest.mark.fault

SUPPORT = Path(__file__).parents[2] / "support"
# Sanitizers report what GCC's optimizations of other functions hide, so these builds have few.
SANITIZED = ("-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def compiler() -> str:
    found = build.find_compiler()
    assert found is not None
    return found[0]


def runtime(compiler: str, name: str) -> str:
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_decoder_stays_within_its_memory_and_the_language(compiler: str, tmp_path: Path) -> None:
    target = tmp_path / "decoder.so"
    build.compile_to(target, [compiler], [*SANITIZED, "-fsanitize=address,undefined", "-march=native"])
    done = subprocess.run(
        [sys.executable, "-m", "support.native_exercise", str(target)],
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(runtime(compiler, name) for name in ("libasan.so", "libubsan.so")),
            # Python itself frees little at its end.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": f"{SUPPORT.parent.parent}:{SUPPORT.parent}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_thread_pool_has_no_data_race(compiler: str, tmp_path: Path) -> None:
    program = tmp_path / "pool_races"
    command = [compiler, "-std=c++17", *SANITIZED, "-fsanitize=thread", "-pthread", f"-I{build.SOURCES}"]
    subprocess.run([*command, str(SUPPORT / "pool_races.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_every_allocation_may_fail_and_the_process_lives(compiler: str, tmp_path: Path) -> None:
    target = tmp_path / "decoder.so"
    # -Bsymbolic: the library uses its own `operator new` although the process has another one.
    hook = str(SUPPORT / "failing_allocations.cpp")
    build.compile_to(target, [compiler], ["-O1", "-march=native", "-Wl,-Bsymbolic", hook])
    done = subprocess.run(
        [sys.executable, "-m", "support.native_without_memory", str(target)],
        env=os.environ | {"PYTHONPATH": f"{SUPPORT.parent.parent}:{SUPPORT.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
