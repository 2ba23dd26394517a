"""Uses every function of a native library: `python -m support.native_exercise decoder.so`.

The tests run it in a process of its own, where a sanitizer can end the process.
"""

from __future__ import annotations

import sys

import torch

from audiocraft_api.engine.cpu.native.library import FORMATS, SamplingParams, open_library
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.cpu.native_layers import NativeLayers, Steps
from support.random_weights import random_weights, some_context, some_tokens

NUM_SLOTS, CAPACITY = 19, 90
LONG_SLOTS = (0, 9)  # whose rows reach the last position
SIZES = ((128, 2), (192, 6), (64, 4))


def main() -> None:
    library = open_library(sys.argv[1])
    for weight_format in FORMATS:
        for dim, num_heads in SIZES:
            for has_cross in (True, False):
                weights = random_weights(dim, num_heads, num_layers=2, has_cross=has_cross)
                sizes = {"num_slots": NUM_SLOTS, "capacity": CAPACITY, "num_threads": 3}
                backend = NativeBackend(weights, **sizes, weight_format=weight_format, library=library)
                use(backend, dim, has_cross)
                backend.close()
    native = NativeLayers(library, num_threads=3)
    for size in (16, 64, 80):
        use_lstm(native, size)
    for num_outputs, num_inputs, num_taps, dilation in ((16, 16, 1, 1), (1, 5, 3, 2), (40, 300, 3, 1), (33, 260, 7, 4)):
        convolution = native.convolution(
            list(torch.randn(num_taps, num_outputs, num_inputs)), torch.randn(num_outputs), dilation
        )
        for length in (*range(1, 14), 97, 200):
            x = torch.randn((num_taps - 1) * dilation + length, num_inputs)
            y = torch.empty_like(x)
            native.elu(x, y)
            assert torch.isfinite(convolution(y)).all()


def use_lstm(native: NativeLayers, size: int) -> None:
    """Advance sequences of different lengths, more of them than a block of rows."""
    lstm = native.lstm(torch.nn.LSTM(size, size, 2))
    assert lstm is not None
    for layer in range(2):
        sequences = [Steps(torch.randn(length, 4 * size), *torch.zeros(2, size)) for length in (3, 0, 7, 1, 5, 7, 2)]
        assert all(torch.isfinite(output).all() for output in lstm.advance(layer, sequences))


def use(backend: NativeBackend, dim: int, has_cross: bool) -> None:
    """Fill all slots, some to their last positions, and release them."""
    contexts = [some_context(dim, 1 + 3 * slot) if has_cross else None for slot in range(NUM_SLOTS)]
    for slot, context in enumerate(contexts):
        backend.begin(slot, context)
    if has_cross:
        parts = [(some_context(dim, length, seed=length), 0.5) for length in (5, 40)]
        backend.blend(1, parts)
        backend.blend(1, parts[1:])
    prefix = None if has_cross else some_context(dim, 70, seed=3)
    begin = 0 if prefix is None else len(prefix)
    prompt = some_tokens(CAPACITY - begin - 4).T.contiguous()
    for slot in LONG_SLOTS:
        backend.prefill(slot, 0, prefix, prompt)
    for step in range(4):
        for slots in (list(range(NUM_SLOTS)), [NUM_SLOTS - 1], [3, 1], [0, 3, 6, 9, 12]):
            positions = [CAPACITY - 4 + step if slot in LONG_SLOTS else step for slot in slots]
            logits = backend.decode(slots, some_tokens(len(slots), seed=step), positions)
            assert torch.isfinite(logits).all()
    guided = SamplingParams(seed=7, draw=3, rows=2, is_greedy=0, top_k=250, top_p=0.0, temperature=1.0, cfg_coef=3.0)
    narrow = SamplingParams(seed=8, draw=4, rows=1, is_greedy=0, top_k=0, top_p=0.9, temperature=0.7, cfg_coef=1.0)
    greedy = SamplingParams(seed=9, draw=5, rows=1, is_greedy=1, top_k=1, top_p=0.0, temperature=1.0, cfg_coef=1.0)
    logits = backend.decode([0, 1, 2, 4], some_tokens(4), [CAPACITY - 1, 4, 4, 4])
    assert (backend.sample([guided, narrow, greedy], logits) >= 0).all()
    logits[0, 0, 0] = float("nan")
    assert (backend.sample([guided, narrow, greedy], logits)[0] == -1).any()
    for slot in range(NUM_SLOTS):
        backend.release(slot)


if __name__ == "__main__":
    main()
