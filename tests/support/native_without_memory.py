"""Lets every allocation of a native library fail once: `python -m support.native_without_memory decoder.so`.

The library must be compiled with failing_allocations.cpp. The tests run this in a process of its own, which a failure
that nothing catches would end. Prints how many failures each call survived.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.cpu.native.library import FORMATS, SamplingParams, open_library
from audiocraft_api.engine.cpu.native_backend import Format, NativeBackend
from audiocraft_api.engine.cpu.native_lstm import NativeLstm, Steps
from support.random_weights import random_weights, some_context, some_tokens

NUM_ROWS = 12


def main() -> None:
    library = open_library(sys.argv[1])
    library.test_fail_allocation_after.argtypes = [ctypes.c_long]
    for weight_format in FORMATS:
        counts = survived(library, weight_format)
        print(weight_format, *(f"{name}={count}" for name, count in counts.items()))
        assert min(counts.values()) > 0, "an operation that allocates nothing shows nothing"
    counts = survived_by_lstm(library)
    print("lstm", *(f"{name}={count}" for name, count in counts.items()))
    assert min(counts.values()) > 0


def survived(library: ctypes.CDLL, weight_format: Format) -> dict[str, int]:
    """Return how many failing allocations each operation survived; its result afterwards is that of a new backend."""
    weights = random_weights(num_layers=2)

    def make() -> NativeBackend:
        sizes = {"num_slots": NUM_ROWS, "capacity": 64, "num_threads": 3}
        return NativeBackend(weights, **sizes, weight_format=weight_format, library=library)

    def begin(backend: NativeBackend) -> Tensor:
        for slot in range(NUM_ROWS):
            backend.begin(slot, some_context(weights.dim, 3 + slot))
        return decode(backend)

    def decode(backend: NativeBackend) -> Tensor:
        return backend.decode(list(range(NUM_ROWS)), some_tokens(NUM_ROWS), [0] * NUM_ROWS)

    def sample(backend: NativeBackend) -> Tensor:
        each = {"draw": 3, "rows": 1, "is_greedy": 0, "top_p": 0.0, "temperature": 1.0, "cfg_coef": 1.0}
        params = [SamplingParams(seed=seed, top_k=20 * (seed % 2), **each) for seed in range(NUM_ROWS)]
        return backend.sample(params, torch.randn(NUM_ROWS, 4, 64, generator=torch.Generator().manual_seed(1)))

    expected = make()
    operations: dict[str, Callable[[NativeBackend], Tensor]] = {"begin": begin, "decode": decode, "sample": sample}
    results = {name: operation(expected) for name, operation in operations.items()}
    counts = {"create": failures(library, lambda: make().close())}
    for name, operation in operations.items():
        backend = make()
        if name != "begin":
            for slot in range(NUM_ROWS):
                backend.begin(slot, some_context(weights.dim, 3 + slot))
        counts[name] = failures(library, lambda backend=backend, operation=operation: operation(backend))
        assert torch.equal(operation(backend), results[name]), f"{weight_format}: {name} differs after failures"
    return counts


def survived_by_lstm(library: ctypes.CDLL) -> dict[str, int]:
    """Return how many failing allocations an LSTM survived; its result afterwards is that of a new one."""
    module, gates = torch.nn.LSTM(32, 32), torch.randn(5, 128)

    def advance(lstm: NativeLstm) -> Tensor:
        return torch.cat(lstm.advance(0, [Steps(gates, *torch.zeros(2, 32)) for _ in range(3)]))

    lstm = NativeLstm(module, library, num_threads=3)
    counts = {
        "create": failures(library, lambda: NativeLstm(module, library, num_threads=3)),
        "advance": failures(library, lambda: advance(lstm)),
    }
    assert torch.equal(advance(lstm), advance(NativeLstm(module, library, num_threads=3)))
    return counts


def failures(library: ctypes.CDLL, operation: Callable[[], object]) -> int:
    """Repeat `operation`, failing its first allocation, then its second, until it ends without a failure."""
    for count in range(10_000):
        library.test_fail_allocation_after(count)
        try:
            operation()
        except OutOfMemory:
            continue
        finally:
            has_failed = library.test_allocation_failed()
            library.test_fail_allocation_after(-1)
        assert not has_failed, f"nothing reported that allocation {count} failed"
        return count
    raise AssertionError("an operation never ended without a failure")


if __name__ == "__main__":
    main()
