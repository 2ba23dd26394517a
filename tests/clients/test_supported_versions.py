"""The clients work where they say they do: with the oldest Python, and in strict TypeScript."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

from clients.generate import CLIENTS
from support.documents import ROOT
from support.keys import ENVIRONMENT_KEY
from support.served import Server

SDKS = ROOT / "tests" / "web" / "compat" / "javascript"
SHOW_MODULES = "import sys, audiocraft_api_client.cli; print(*{name.split('.')[0] for name in sys.modules})"
STRICT = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom,dom.asynciterable"]

pytestmark = pytest.mark.fault  # they install packages


def test_the_python_client_installs_alone_and_works_with_the_oldest_python(server: Server, tmp_path: Path) -> None:
    """Python 3.9, if this machine has it; otherwise the oldest that the client supports."""
    found = subprocess.run([ROOT / "scripts" / "find-python", "--oldest"], capture_output=True, text=True, check=True)
    shutil.copytree(CLIENTS / "python", tmp_path / "source")
    subprocess.run([found.stdout.strip(), "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    programs = tmp_path / "venv" / "bin"
    install = [programs / "pip", "install", "--quiet", f"{tmp_path / 'source'}[live]"]
    subprocess.run(install, check=True, timeout=300)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ |= {"AUDIOCRAFT_URL": server.url, "AUDIOCRAFT_KEY": ENVIRONMENT_KEY}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [programs / command[0], *command[1:]],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    modules = run("python", "-W", "error", "-c", SHOW_MODULES).split()
    assert not set(modules) & {"torch", "numpy", "flask", "audiocraft_api"}
    assert run("audiocraft", "generate", "cello", "-d", "1", "-o", "a.wav") == "a.wav\n"
    assert run("audiocraft", "live", "cello", "-m", "demo-stereo", "-d", "1", "-o", "b.wav") == "b.wav\n"
    assert [soundfile.info(tmp_path / name).duration for name in ("a.wav", "b.wav")] == [1, 1]


def test_the_types_of_the_javascript_client_are_strict(tmp_path: Path) -> None:
    compiler = SDKS / "node_modules" / ".bin" / "tsc"
    assert compiler.exists(), "run: make test-faults, which installs TypeScript"
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(Path(__file__).parent / "types" / "usage.ts", tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "audiocraft-api-client").symlink_to(CLIENTS / "javascript")
    done = subprocess.run([compiler, *STRICT, "usage.ts"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
