"""Compiling and loading the native library: which compiler is used, and when the library is built again."""

from __future__ import annotations

import _ctypes
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiocraft_api.engine.cpu.native import build, library
from audiocraft_api.engine.cpu.native_backend import FORMATS, NativeBackend
from support.random_weights import random_weights, relative_error, row_logits, some_context, some_tokens
from support.served import ROOT, serve, wait_until

# Stands in for a compiler, because compiling takes long: copies this machine's library to the argument after -o.
COPYING_COMPILER = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo built >>"{log}"
exec "{cp}" "{library}" "$2"
"""


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `CXX` a program that stands in for a compiler. Return the file in which it writes a line for each build."""
    compiler, log = tmp_path / "compiler", tmp_path / "compilations"
    compiler.write_text(COPYING_COMPILER.format(log=log, cp=shutil.which("cp"), library=build.build()))
    compiler.chmod(0o755)
    log.touch()
    monkeypatch.setenv("CXX", str(compiler))
    return log


def test_a_missing_library_is_built_once(compilations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        loaded = library.open_or_build(tmp_path / "native")
        assert loaded is not None
        assert loaded.native_integer_kernel()
    assert compilations.read_text() == "built\n"
    assert "Compiling the native kernels" in caplog.text
    assert "Compiled the native kernels in" in caplog.text


def test_a_library_of_edited_sources_is_replaced(compilations: Path, tmp_path: Path) -> None:
    directory = tmp_path / "native"
    directory.mkdir()
    of_other_sources = directory / "decoder-0123456789abcdef.so"
    of_other_sources.touch()
    assert library.open_or_build(directory) is not None
    assert compilations.read_text() == "built\n"
    assert [path.name for path in directory.glob("*.so")] == [build.library_path(directory).name]


def test_the_kernels_are_unknown_until_the_library_is_loaded() -> None:
    script = (
        "import sys; from audiocraft_api.engine.cpu.native.library import known_kernels, load_library;"
        "print(known_kernels(), 'torch' in sys.modules); load_library(); print(known_kernels())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None False", library.kernels_of(library.load_library())]


def test_without_a_library_the_kernels_are_those_of_pytorch() -> None:
    assert library.kernels_of(None) == "pytorch"


@pytest.mark.parametrize("contents", [b"", b"not a library"])
def test_a_library_that_cannot_be_loaded_is_built_again(
    contents: bytes, compilations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build.library_path(tmp_path / "native")
    path.parent.mkdir()
    path.write_bytes(contents)
    assert library.open_or_build(path.parent) is not None
    assert compilations.read_text() == "built\n"
    assert "cannot be loaded" in caplog.text


def test_a_library_without_the_expected_functions_is_built_again(compilations: Path, tmp_path: Path) -> None:
    path = build.library_path(tmp_path / "native")
    path.parent.mkdir()
    shutil.copy(_ctypes.__file__, path)
    assert library.open_or_build(path.parent) is not None
    assert compilations.read_text() == "built\n"


def test_a_library_that_cannot_be_built_is_a_warning_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "false")
    assert library.open_or_build(tmp_path / "native") is None
    assert "PyTorch's own, which are slower, are used" in caplog.text
    assert "false failed" in caplog.text


def test_a_directory_that_cannot_be_written_is_a_warning(
    compilations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert library.open_or_build(tmp_path / "file" / "native") is None
    assert "cannot be written" in caplog.text
    assert compilations.read_text() == ""


def test_processes_that_start_together_build_once(compilations: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from audiocraft_api.engine.cpu.native import build;"
        f"build.build(Path({str(tmp_path / 'native')!r}))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert compilations.read_text() == "built\n"


def test_the_systems_compilers_come_before_ziglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.find_compiler() == build.zig_compiler()
    for name in ("clang++", "g++"):
        (tmp_path / name).touch(0o755)
        assert build.find_compiler() == (str(tmp_path / name),)


@pytest.mark.parametrize(
    ("system", "machine", "flags"),
    [
        ("Linux", "x86_64", ["-march=native"]),
        ("Linux", "aarch64", ["-mcpu=native"]),
        ("Darwin", "x86_64", ["-march=native"]),
        ("Darwin", "arm64", []),
    ],
)
def test_the_flags_name_the_processor_of_the_machine(system: str, machine: str, flags: list[str]) -> None:
    assert build.native_flags(system, machine) == flags


# In a process without PATH, so that no other compiler can help.
BUILD_AND_DECODE = """
import sys
from pathlib import Path
import torch
from audiocraft_api.engine.cpu.native import library
from audiocraft_api.engine.cpu.native_backend import FORMATS, NativeBackend
from support.random_weights import random_weights, row_logits, some_context, some_tokens
loaded = library.open_or_build(Path(sys.argv[1]))
weights, logits = random_weights(num_layers=2), {}
for name in FORMATS:
    backend = NativeBackend(weights, num_slots=1, capacity=64, num_threads=2, weight_format=name, library=loaded)
    logits[name] = row_logits(backend, some_context(weights.dim, 6), some_tokens(20))
torch.save(logits, sys.argv[2])
"""


@pytest.mark.fault
def test_ziglang_builds_the_same_kernels(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD_AND_DECODE, tmp_path / "native", tmp_path / "logits"],
        env={"PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "logits")
    weights = random_weights(num_layers=2)
    for name in FORMATS:
        backend = NativeBackend(weights, num_slots=1, capacity=64, num_threads=2, weight_format=name)
        expected = row_logits(backend, some_context(weights.dim, 6), some_tokens(20))
        # As between processors: compilers contract float products and sums differently.
        bound = {"float32": 3e-6, "int6": 2e-2}.get(name, 5e-3)
        assert relative_error(found[name], expected) < bound


@pytest.mark.fault
def test_a_server_whose_kernels_were_edited_builds_them_at_startup_without_a_compiler_on_path(
    demo_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("app.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "audiocraft_api", copy / "audiocraft_api")
    with (copy / "audiocraft_api/engine/cpu/native/pool.h").open("a") as source:
        source.write("// edited\n")
    cache = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(build.ZIG_CACHE))
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.setenv(name, cache)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CXX", raising=False)
    settings = {"checkpoints_dir": demo_checkpoints, "device": "cpu", "offline": True, "import_at_start": True}
    with serve(tmp_path, root=copy, **settings) as server:
        wait_until(lambda: "Compiled the native kernels" in server.log, build.COMPILE_TIMEOUT_SECONDS)
        body = {"prompt": "warm pads", "duration": 1, "model_size": "demo", "output_format": "wav"}
        response = server.post("/generate", json=body)
        assert response.status_code == 200, response.text
    assert len(list((copy / "build/native").glob("decoder-*.so"))) == 1
