"""The recurrent layer of an EnCodec decoder: its state is kept between blocks, and several waveforms advance together.

On a CPU, a step reads all recurrent weights (34 MB in the released codec) for one row of arithmetic. The native library
reads them once for all waveforms. PyTorch's own layer, which takes one waveform at a time, is the reference
implementation, and is used on other devices and where the library is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audiocraft_api.engine.codec.stages import Linear
from audiocraft_api.engine.cpu.native_lstm import NativeLstm, Steps, native_lstm


class LstmState:
    """The hidden and cell state of each layer for one waveform."""

    def __init__(self, module: nn.LSTM) -> None:
        shape = (module.num_layers, module.hidden_size)
        weight = next(module.parameters())
        self.hidden, self.cell = weight.new_zeros(shape), weight.new_zeros(shape)  # [L, H]


class Lstm:
    """`lstm(x) + x` (transformers `modeling_encodec.py::EncodecLSTM`) for blocks of several waveforms."""

    def __init__(self, module: nn.LSTM, *, is_native: bool = True) -> None:
        """`is_native`: use the native library if `module` is on a CPU and the library supports it."""
        self.module = module
        on_cpu = next(module.parameters()).device.type == "cpu"
        self._native = native_lstm(module, torch.get_num_threads()) if on_cpu and is_native else None
        self._inputs = [_inputs(module, layer) for layer in range(module.num_layers)] if self._native else []

    def new_state(self) -> LstmState:
        return LstmState(self.module)

    def feed(self, states: Sequence[LstmState], blocks: Sequence[Tensor]) -> list[Tensor]:
        """Advance each state by its block [n, H] and return the outputs [n, H]. Lengths may differ or be 0."""
        outputs = list(blocks)
        due = [index for index, block in enumerate(blocks) if block.shape[0]]
        due_states, due_blocks = [states[index] for index in due], [blocks[index] for index in due]
        if self._native:
            advanced = self._advance_native(self._native, due_states, due_blocks)
        else:
            advanced = [self._advance(state, block) for state, block in zip(due_states, due_blocks, strict=True)]
        for index, output in zip(due, advanced, strict=True):
            outputs[index] = output + blocks[index]
        return outputs

    def _advance(self, state: LstmState, block: Tensor) -> Tensor:
        output, (state.hidden, state.cell) = self.module(block, (state.hidden, state.cell))
        return output  # type: ignore[no-any-return]

    def _advance_native(
        self, native: NativeLstm, states: Sequence[LstmState], blocks: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        for layer, inputs in enumerate(self._inputs):
            # The inputs' part of the gates is one product for each waveform, whose bits depend on its number of rows.
            steps = [
                Steps(inputs(block), state.hidden[layer], state.cell[layer])
                for state, block in zip(states, blocks, strict=True)
            ]
            blocks = native.advance(layer, steps)
        return blocks


def _inputs(module: nn.LSTM, layer: int) -> Linear:
    """Return the product of a layer's inputs with their weights, plus the biases."""
    weight = getattr(module, f"weight_ih_l{layer}").detach()
    if not module.bias:
        return Linear(weight)
    return Linear(weight, (getattr(module, f"bias_ih_l{layer}") + getattr(module, f"bias_hh_l{layer}")).detach())
