"""`python -m bench.bundle DIR`: collects what `python -m bench.gpu` needs beside torch and transformers.

Run it where there is a package index, copy the folder to the machine with the GPU, and put it on `PYTHONPATH` there.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_BYTES = 60_000_000
# Of the service, what the engine imports.
SOURCES = ("core", "config", "model", "engine")
# Settings are classes of pydantic; these are all that it needs.
PACKAGES = ("annotated-types", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection")
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bundle", description=__doc__)
    parser.add_argument("directory", type=Path, help="is replaced")
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python")
    parser.add_argument("--architecture", default="x86_64", help="of the other machine, or aarch64")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    copy_sources(options.directory)
    install_packages(options.directory, options.python, options.architecture)
    num_bytes = sum(path.stat().st_size for path in options.directory.rglob("*") if path.is_file())
    print(f"{options.directory}: {num_bytes / 1e6:.1f} MB")
    if num_bytes > MAX_BYTES:
        sys.exit(f"The bundle may have {MAX_BYTES / 1e6:g} MB at most.")


def copy_sources(directory: Path) -> None:
    """Copy the engine and the benchmark."""
    package = directory / "audiocraft_api"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "audiocraft_api" / "__init__.py", package)
    # Neither the numbers of the demo models nor kernels built for this machine.
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    for name in SOURCES:
        shutil.copytree(ROOT / "audiocraft_api" / name, package / name, ignore=ignored)
    shutil.copytree(ROOT / "bench", directory / "bench", ignore=ignored)


def install_packages(directory: Path, python: str, architecture: str) -> None:
    """Install the wheels that the lock names, for another machine's Python."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(locked((ROOT / "requirements.txt").read_text(), PACKAGES))
        file.flush()
        platforms = [f"--platform={platform}_{architecture}" for platform in PLATFORMS]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", directory, "--python-version", python,
             *platforms, "--only-binary=:all:", "--no-deps", "--require-hashes", "--no-compile", "-r", file.name],
            check=True,
        )  # fmt: skip


def locked(lock: str, names: tuple[str, ...]) -> str:
    """Return the entries of a lock for packages, with their hashes. Raises ValueError for one that it does not have."""
    entries = re.split(r"(?m)^(?=[a-z])", lock)
    found = {entry.partition("==")[0]: entry for entry in entries}
    if missing := set(names) - set(found):
        raise ValueError(f"the lock does not have {', '.join(sorted(missing))}")
    return "".join(found[name] for name in names)


if __name__ == "__main__":
    main()
