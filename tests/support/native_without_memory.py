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
from audiocraft_api.engine.cpu.native_layers import NativeConvolution, NativeLayers, NativeLstm, Steps
from support.random_weights import random_weights, some_context, some_tokens

NUM_ROWS = 12


def main() -> None:
    library = open_library(sys.argv[1])
    library.test_fail_allocation_after.argtypes = [ctypes.c_long]
    for weight_format in FORMATS:
        counts = survived(library, weight_format)
        print(weight_format, *(f"{name}={count}" for name, count in counts.items()))
        assert min(counts.values()) > 0, "an operation that allocates nothing shows nothing"
    counts = survived_by_layers(library)
    print("layers", *(f"{name}={count}" for name, count in counts.items()))
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


def survived_by_layers(library: ctypes.CDLL) -> dict[str, int]:
    """Return how many failing allocations a codec's layers survived; their results afterwards are those of new ones."""
    module, gates = torch.nn.LSTM(32, 32), torch.randn(5, 128)
    weights, x = list(torch.randn(3, 20, 300)), torch.randn(40, 300)

    def make() -> tuple[NativeLstm, NativeConvolution]:
        native = NativeLayers(library, 1)  # so that the one thread's buffer of inputs is the first convolution's
        lstm = native.lstm(module)
        assert lstm is not None
        return lstm, native.convolution(weights)

    def use(lstm: NativeLstm, convolution: NativeConvolution) -> Tensor:
        states = [Steps(gates, *torch.zeros(2, 32)) for _ in range(3)]
        return torch.cat([each.flatten() for each in (*lstm.advance(0, states), convolution(x))])

    layers = make()
    counts = {"create": failures(library, make), "use": failures(library, lambda: use(*layers))}
    assert torch.equal(use(*layers), use(*make()))
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
