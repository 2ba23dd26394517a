"""The kernels for ARM: cross-compiled, and run by an emulator of ARM processors. They return the bits of x86."""

from __future__ import annotations

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiocraft_api.engine.cpu.native import build

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares ARM kernels with the portable one for x86"),
]

DRIVER = Path(__file__).parents[2] / "support" / "decode_and_hash.cpp"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
# Processors without dot products (Raspberry Pi 4), with them (Raspberry Pi 5), and with SVE and matrix products, too
# (Graviton3).
KERNELS = {"cortex-a72": "portable", "cortex-a76": "neon-dotprod", "neoverse-v1": "neon-dotprod"}


def compile_driver(compiler: str, processor: str, target: Path) -> Path:
    """Compile the driver as the library is compiled, but without contraction, which differs between processors."""
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    flags += [*build.STRICT_FLAGS, processor, "-O1", "-ffp-contract=off", "-static", f"-I{build.SOURCES}"]
    sources = [source for source in build.SOURCES.glob("*.cpp") if source.name != "api.cpp"]
    subprocess.run([compiler, *flags, *sources, DRIVER, "-o", target], check=True)
    return target


def output_of(command: list[str | Path]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return what the driver prints, by processor; `x86-64` has no vector instructions for integer products."""
    directory = tmp_path_factory.mktemp("arm")
    compiler = build.find_compiler()
    assert compiler is not None

    def run_for_arm(processor: str) -> list[str]:
        program = compile_driver(CROSS_COMPILER, f"-mcpu={processor}", directory / processor)
        return output_of(["qemu-aarch64", "-cpu", "max", program])

    with ThreadPoolExecutor(2) as executor:
        found = dict(zip(KERNELS, executor.map(run_for_arm, KERNELS), strict=True))
    program = compile_driver(compiler[0], "-march=x86-64", directory / "x86-64")
    return found | {"x86-64": output_of([program])}


@pytest.mark.parametrize("processor", KERNELS)
def test_kernels_for_arm_return_the_bits_of_the_portable_kernel(outputs: dict[str, list[str]], processor: str) -> None:
    kernel, *results = outputs[processor]
    assert kernel == f"kernel {KERNELS[processor]}"
    reference, *expected = outputs["x86-64"]
    assert reference == "kernel portable"
    assert len(expected) == 17  # two products, and logits of five formats in three sizes
    assert results == expected


def test_clang_compiles_the_sources_for_apple_silicon_without_warnings() -> None:
    clang_tidy = Path(sys.executable).with_name("clang-tidy")
    command = [clang_tidy, "--quiet", "--checks=-*,clang-diagnostic-*", "--allow-no-checks"]
    flags = ["-std=c++17", "--target=aarch64-linux-gnu", "-mcpu=apple-m1", *build.STRICT_FLAGS]
    output_of([*command, *build.SOURCES.glob("*.cpp"), "--", *flags])
