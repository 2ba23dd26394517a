"""The recurrent layer of an EnCodec decoder: its state is kept between blocks, and several waveforms advance together.

On a CPU, a step reads all recurrent weights (34 MB in the released codec) for one row of arithmetic. The native library
reads them once for all waveforms. PyTorch's own layer, which takes one waveform at a time, is the reference
implementation, and is used on other devices and where the library is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from audiocraft_api.engine.cpu.native_layers import NativeConvolution, NativeLayers, NativeLstm, Steps


class LstmState:
    """The hidden and cell state of each layer for one waveform."""

    def __init__(self, module: nn.LSTM) -> None:
        shape = (module.num_layers, module.hidden_size)
        weight = next(module.parameters())
        self.hidden, self.cell = weight.new_zeros(shape), weight.new_zeros(shape)  # [L, H]


class Lstm:
    """`lstm(x) + x` (transformers `modeling_encodec.py::EncodecLSTM`) for blocks of several waveforms."""

    def __init__(self, module: nn.LSTM, native: NativeLayers | None) -> None:
        """`native` is used if it supports the module's size."""
        self._module = module
        self._native = native.lstm(module) if native else None
        self._inputs = _inputs(module, native) if native and self._native else []

    def new_state(self) -> LstmState:
        return LstmState(self._module)

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
        output, (state.hidden, state.cell) = self._module(block, (state.hidden, state.cell))
        return output  # type: ignore[no-any-return]

    def _advance_native(
        self, native: NativeLstm, states: Sequence[LstmState], blocks: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        for layer, inputs in enumerate(self._inputs):
            steps = [
                Steps(inputs(block), state.hidden[layer], state.cell[layer])
                for state, block in zip(states, blocks, strict=True)
            ]
            blocks = native.advance(layer, steps)
        return blocks


def _inputs(module: nn.LSTM, native: NativeLayers) -> list[NativeConvolution]:
    """Return each layer's product of its inputs with their weights, plus the biases."""
    products = []
    for layer in range(module.num_layers):
        weight, *biases = (
            getattr(module, f"{name}_l{layer}").detach()
            for name in ("weight_ih", *(("bias_ih", "bias_hh") if module.bias else ()))
        )
        products.append(native.convolution([weight], biases[0] + biases[1] if biases else None))
    return products
