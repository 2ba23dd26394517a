"""The recurrent layer of an EnCodec decoder: its state is kept between blocks, and several waveforms advance together.

On a CPU, a step reads all recurrent weights (34 MB in the released codec) for one row of arithmetic, so it takes the
same time for four rows; it is half of a decoder's time. Rows are therefore grouped, always into a matrix of `NUM_ROWS`
rows, in which a row's bits do not depend on the other rows. That is a property of the kernel, and is checked on the
machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audiocraft_api.engine.codec.stages import Linear

NUM_ROWS = 4


class LstmState:
    """The hidden and cell state of each layer for one waveform."""

    def __init__(self, module: nn.LSTM) -> None:
        shape = (module.num_layers, module.hidden_size)
        weight = next(module.parameters())
        self.hidden, self.cell = weight.new_zeros(shape), weight.new_zeros(shape)  # [L, H]


class _Layer:
    """One layer, its gates reordered to input, forget, output, candidate, so that one sigmoid covers three of them."""

    def __init__(self, module: nn.LSTM, index: int) -> None:
        def gates(name: str) -> Tensor:
            i, f, g, o = getattr(module, f"{name}_l{index}").detach().chunk(4)
            return torch.cat((i, f, o, g))

        self.size = module.hidden_size
        self.inputs = Linear(gates("weight_ih"), gates("bias_ih") + gates("bias_hh") if module.bias else None)
        self.recurrent = Linear(gates("weight_hh"))

    def step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next hidden and cell state [R, H]; `x` [R, 4H] is the input's part of the gates."""
        gates = self.recurrent(hidden, addend=x)
        i, f, o = gates[:, : 3 * self.size].sigmoid().chunk(3, dim=1)
        cell = torch.addcmul(f * cell, i, gates[:, 3 * self.size :].tanh())
        return o * cell.tanh(), cell


class Lstm:
    """`lstm(x) + x` (transformers `modeling_encodec.py::EncodecLSTM`) for blocks of several waveforms."""

    def __init__(self, module: nn.LSTM) -> None:
        """On other devices than the CPU, `module` itself is used, one waveform at a time."""
        self._module = module
        self._on_cpu = next(module.parameters()).device.type == "cpu"
        self._layers = [_Layer(module, index) for index in range(module.num_layers)] if self._on_cpu else []
        self._group_size = NUM_ROWS if self._on_cpu and self._rows_are_independent() else 1

    def new_state(self) -> LstmState:
        return LstmState(self._module)

    def feed(self, states: Sequence[LstmState], blocks: Sequence[Tensor]) -> list[Tensor]:
        """Advance each state by its block [n, H] and return the outputs [n, H]. Lengths may differ or be 0."""
        outputs = list(blocks)
        due = [index for index, block in enumerate(blocks) if block.shape[0]]
        for start in range(0, len(due), self._group_size):
            group = due[start : start + self._group_size]
            group_states, group_blocks = [states[i] for i in group], [blocks[i] for i in group]
            advance = self._advance_rows if self._on_cpu else self._advance_module
            for index, output in zip(group, advance(group_states, group_blocks), strict=True):
                outputs[index] = output + blocks[index]
        return outputs

    def _advance_module(self, states: Sequence[LstmState], blocks: Sequence[Tensor]) -> list[Tensor]:
        (state,), (block,) = states, blocks
        output, (state.hidden, state.cell) = self._module(block, (state.hidden, state.cell))
        return [output]

    def _advance_rows(self, states: Sequence[LstmState], blocks: Sequence[Tensor]) -> list[Tensor]:
        xs = list(blocks)
        length = max(x.shape[0] for x in xs)
        for index, layer in enumerate(self._layers):
            hidden, cell = xs[0].new_zeros(2, NUM_ROWS, layer.size)
            gates = xs[0].new_zeros(length, NUM_ROWS, 4 * layer.size)
            for row, (state, x) in enumerate(zip(states, xs, strict=True)):
                hidden[row], cell[row] = state.hidden[index], state.cell[index]
                gates[: x.shape[0], row] = layer.inputs(x)
            hiddens, cells = xs[0].new_empty(2, length, NUM_ROWS, layer.size)
            for t in range(length):
                hidden, cell = layer.step(gates[t], hidden, cell)
                hiddens[t], cells[t] = hidden, cell
            # A row shorter than the others continued over zeros; its state is that of its own last sample.
            for row, (state, x) in enumerate(zip(states, xs, strict=True)):
                state.hidden[index], state.cell[index] = hiddens[x.shape[0] - 1, row], cells[x.shape[0] - 1, row]
            xs = [hiddens[: x.shape[0], row].contiguous() for row, x in enumerate(xs)]
        return xs

    def _rows_are_independent(self) -> bool:
        """Return whether a row of a step has the same bits at each index and next to any other rows."""
        generator = torch.Generator().manual_seed(0)
        for layer in self._layers:
            row = [torch.randn(1, size * layer.size, generator=generator) for size in (4, 1, 1)]
            results = []
            for place in range(NUM_ROWS):
                for scale in (0.0, 1.0):
                    batch = [scale * torch.randn(NUM_ROWS, x.shape[1], generator=generator) for x in row]
                    for x, own in zip(batch, row, strict=True):
                        x[place] = own
                    results.append(torch.cat([y[place] for y in layer.step(*batch)]))
            if not all(torch.equal(result, results[0]) for result in results):
                return False
        return True
