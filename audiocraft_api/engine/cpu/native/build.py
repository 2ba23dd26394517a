"""Compile the native decoder with a C++ compiler: `python -m audiocraft_api.engine.cpu.native.build`.

The library is written to `build/native/`. Its name contains a hash of the sources, the flags and the processor, so that
a library built from other sources or for another machine is never loaded. A C++17 compiler is all that is needed, such
as the one in the package ziglang; without one the service uses PyTorch instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent
BUILD_DIR = SOURCES.parents[3] / "build" / "native"
# Contraction allows fused multiply-adds. Options such as -ffast-math are off: they would change the order of summation.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
# The tests compile with these; an installation does not, because an untested compiler may warn about correct code.
# -Wno-psabi: Quad values never cross the library's boundary, so their calling convention does not matter.
STRICT_FLAGS = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
# Zig compiles its C++ library first: two and a half minutes of one core, and much longer on a busy machine.
COMPILE_TIMEOUT_SECONDS = 1800
ZIG_CACHE = BUILD_DIR.parent / "zig"


class BuildError(Exception):
    """The library could not be compiled; the message says why."""


def find_compiler() -> tuple[str, ...] | None:
    """Return the command of a C++ compiler: `CXX`, the system's, or the package ziglang. None if there is none."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    found = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if found:
        return (found,)
    return zig_compiler() if importlib.util.find_spec("ziglang") else None


def zig_compiler() -> tuple[str, ...]:
    """Return the command of the compiler in the package ziglang, which must be installed."""
    return (sys.executable, "-m", "ziglang", "c++", "-g0")  # -g0: 3 MB of debugging information by default


def library_path(directory: Path = BUILD_DIR) -> Path:
    """Return the path of the library for these sources and this processor, whether or not it is built."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(repr((FLAGS, _describe_processor())).encode())
    return directory / f"decoder-{digest.hexdigest()[:16]}.so"


def is_available(directory: Path = BUILD_DIR) -> bool:
    """Return whether the library exists or can probably be built."""
    return library_path(directory).exists() or find_compiler() is not None


def build(directory: Path = BUILD_DIR) -> Path:
    """Compile the library unless it exists, and return its path. One process compiles at a time. Raises BuildError."""
    target = library_path(directory)
    if target.exists():
        return target
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found: install g++, clang++ or the Python package ziglang, or set CXX")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            if not target.exists():
                compile_to(target, compiler, native_flags(platform.system(), platform.machine()))
            for old in directory.glob("decoder-*.so"):
                if old != target:
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{directory} cannot be written: {error}") from None
    return target


def compile_to(target: Path, compiler: Sequence[str], extra_flags: Sequence[str]) -> None:
    """Compile the sources into `target` with `FLAGS` and the target processor's flags. Raises BuildError, OSError."""
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        output = Path(directory) / target.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        command = [*compiler, *FLAGS, *extra_flags, *sources, "-o", str(output)]
        environment = {"ZIG_GLOBAL_CACHE_DIR": str(ZIG_CACHE), "ZIG_LOCAL_CACHE_DIR": str(ZIG_CACHE)} | os.environ
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler[0]} could not be run: {error}") from None
        if done.returncode != 0:
            raise BuildError(f"{' '.join(compiler)} failed: {done.stderr.strip()[-2000:]}")
        os.replace(output, target)


def native_flags(system: str, machine: str) -> list[str]:
    """Return the flags that compile for the processor of this machine, named as by the module `platform`."""
    if machine not in ("aarch64", "arm64"):
        return ["-march=native"]
    # Apple's compiler targets the first Apple silicon by default, which has dot products. Not every version of it
    # enables them with `native`.
    return [] if system == "Darwin" else ["-mcpu=native"]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _describe_processor() -> str:
    """Return a description of the processor and its instruction sets, which `native_flags` compile for."""
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
