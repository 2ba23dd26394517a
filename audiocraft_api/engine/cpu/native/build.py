"""Compile the native decoder with the system's C++ compiler: `python -m audiocraft_api.engine.cpu.native.build`.

The library lies under `build/native/`, named after the sources, the compiler and the processor it was compiled for; a
library of another machine is never loaded. Nothing but a C++17 compiler is needed, and without one the service runs
on PyTorch's operations.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
BUILD_DIR = SOURCES.parents[3] / "build" / "native"
# Contraction gives fused multiply-adds; value-changing options stay off, so that a result has one order of summation.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
COMPILE_TIMEOUT_SECONDS = 300


class BuildError(Exception):
    """The library could not be compiled; the message says why."""


def find_compiler() -> str | None:
    """Return the C++ compiler, `CXX` first, or None."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def library_path() -> Path:
    """Return where the library of these sources for this processor lies, built or not."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(repr((FLAGS, _processor())).encode())
    return BUILD_DIR / f"decoder-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compile the library unless it is there, and return its path. Raises BuildError."""
    target = library_path()
    if target.exists():
        return target
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler was found (CXX, g++, clang++, c++)")
    target.parent.mkdir(parents=True, exist_ok=True)
    compile_to(target, compiler, ["-march=native" if platform.machine() != "arm64" else "-mcpu=native"])
    for old in BUILD_DIR.glob("decoder-*.so"):
        if old != target:
            old.unlink(missing_ok=True)
    return target


def compile_to(target: Path, compiler: str, machine_flags: list[str]) -> None:
    """Compile the sources for a machine into `target`. Raises BuildError."""
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        output = Path(directory) / target.name
        units = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        command = [compiler, *FLAGS, *machine_flags, *units, "-o", str(output)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} could not be run: {error}") from None
        if done.returncode != 0:
            raise BuildError(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
        os.replace(output, target)


def _processor() -> str:
    """Name the processor's abilities, which `-march=native` compiles for."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith(("model\t", "CPU part"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {model} {flags}"


def main() -> int:
    """Build, and say in one line what came of it. A missing compiler is no failure: the service runs without."""
    try:
        print(f"native decoder: {build()}")
    except BuildError as error:
        print(f"native decoder: not built, PyTorch's operations will be used ({error})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
