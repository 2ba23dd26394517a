"""The code for processors that this machine may not be: instructions are emulated, and integer results are the same."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiocraft_api.engine.cpu.native import build
from audiocraft_api.engine.cpu.native.library import open_library
from audiocraft_api.engine.cpu.native_backend import Format, NativeBackend
from support.random_weights import random_weights, relative_error, some_context, some_tokens

CAPACITY = 64
EMULATION = Path(__file__).with_name("emulated_x86.h")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates instructions of x86 processors with AVX2"),
]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    compiler = build.find_compiler()
    assert compiler is not None
    directory = tmp_path_factory.mktemp("emulated")
    found = {}
    for name in ("AVX2", "AVX_VNNI", "AVX512", "AVX512_VNNI", "AMX"):
        flags = ["-march=x86-64-v3", "-O1", "-Wno-psabi", "-include", str(EMULATION), f"-DEMULATED_{name}"]
        build.compile_to(directory / f"{name}.so", compiler, flags)
        found[name] = open_library(str(directory / f"{name}.so"))
    return found


def logits_of(library: ctypes.CDLL, weight_format: Format) -> Tensor:
    """Return the logits of single rows, of a few rows at once, and of more than a block of rows at once."""
    weights = random_weights(num_layers=2)
    sizes = {"num_slots": 1, "capacity": CAPACITY, "num_threads": 2}
    backend = NativeBackend(weights, **sizes, weight_format=weight_format, library=library)
    backend.begin(0, some_context(weights.dim, 7))
    position, found = 0, []
    for count in (1, 1, 2, 5, 20, 3):
        found.append(backend.decode([0] * count, some_tokens(count), list(range(position, position + count))))
        position += count
    return torch.cat(found)


def kernel_of(library: ctypes.CDLL) -> str:
    return str(library.native_integer_kernel().decode())


@pytest.mark.parametrize("weight_format", ["int8", "int6"])
@pytest.mark.parametrize(
    ("reference", "other", "kernel"),
    [
        ("AVX2", "AVX_VNNI", "avx-vnni"),
        ("AVX512", "AVX512_VNNI", "avx512-vnni"),
        ("AVX512", "AMX", "amx"),
    ],
)
def test_integer_kernels_of_one_vector_width_return_the_same_bits(
    builds: dict[str, ctypes.CDLL], reference: str, other: str, kernel: str, weight_format: Format
) -> None:
    assert kernel_of(builds[other]) == kernel
    assert torch.equal(logits_of(builds[other], weight_format), logits_of(builds[reference], weight_format))


@pytest.mark.parametrize(("weight_format", "bound"), [("int8", 5e-3), ("int6", 2e-2)])
def test_vector_widths_differ_only_by_the_rounding_of_float_sums(
    builds: dict[str, ctypes.CDLL], weight_format: Format, bound: float
) -> None:
    assert (kernel_of(builds["AVX2"]), kernel_of(builds["AVX512"])) == ("avx2", "avx512")
    found, expected = (logits_of(builds[name], weight_format) for name in ("AVX512", "AVX2"))
    assert relative_error(found, expected) < bound
