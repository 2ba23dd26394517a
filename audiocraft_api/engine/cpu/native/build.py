"""Compile the native decoder with the system's C++ compiler: `python -m audiocraft_api.engine.cpu.native.build`.

The library is written to `build/native/`. Its name contains a hash of the sources, the flags and the processor, so that
a library built for another machine is never loaded. A C++17 compiler is all that is needed; without one the service
uses PyTorch instead.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent
BUILD_DIR = SOURCES.parents[3] / "build" / "native"
# Contraction allows fused multiply-adds. Options such as -ffast-math are off: they would change the order of summation.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
# The tests compile with these; an installation does not, because an untested compiler may warn about correct code.
# -Wno-psabi: Quad values never cross the library's boundary, so their calling convention does not matter.
STRICT_FLAGS = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
COMPILE_TIMEOUT_SECONDS = 300


class BuildError(Exception):
    """The library could not be compiled; the message says why."""


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, `CXX` first, or None if there is none."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def library_path(directory: Path = BUILD_DIR) -> Path:
    """Return the path of the library for these sources and this processor, whether or not it is built."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(repr((FLAGS, _describe_processor())).encode())
    return directory / f"decoder-{digest.hexdigest()[:16]}.so"


def build(directory: Path = BUILD_DIR) -> Path:
    """Compile the library unless it exists, and return its path. Raises BuildError."""
    target = library_path(directory)
    if target.exists():
        return target
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found: install g++ or clang++, or set CXX")
    directory.mkdir(parents=True, exist_ok=True)
    compile_to(target, compiler, ["-march=native" if platform.machine() != "arm64" else "-mcpu=native"])
    for old in directory.glob("decoder-*.so"):
        if old != target:
            old.unlink(missing_ok=True)
    return target


def compile_to(target: Path, compiler: str, extra_flags: Sequence[str]) -> None:
    """Compile the sources into `target` with `FLAGS` and the target processor's flags. Raises BuildError."""
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        output = Path(directory) / target.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        command = [compiler, *FLAGS, *extra_flags, *sources, "-o", str(output)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} could not be run: {error}") from None
        if done.returncode != 0:
            raise BuildError(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
        os.replace(output, target)


def _describe_processor() -> str:
    """Return a description of the processor and its instruction sets, which `-march=native` compiles for."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith(("model\t", "CPU part"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {model} {flags}"


def main(directory: Path = BUILD_DIR) -> int:
    """Build the library and print one line. Exits with 0 even if the build fails: the service works without it."""
    try:
        print(f"native decoder: {build(directory)}")
    except BuildError as error:
        print(f"native decoder: not built, PyTorch will be used instead ({error})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
