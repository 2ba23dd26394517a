"""The recurrent part of LSTM layers on a CPU, in one call of the C++ library for all steps of several sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.cpu.native.library import OUT_OF_MEMORY, LstmSequence, load_library

SIZE_MULTIPLE = 16


@dataclass(frozen=True)
class Steps:
    """The steps of one sequence in one layer, contiguous float32."""

    gates: Tensor  # [T, 4H], what the inputs and the biases add to the gates, in torch's order
    hidden: Tensor  # [H], updated
    cell: Tensor  # [H], updated


class NativeLstm:
    """The recurrent weights of a `torch.nn.LSTM`, packed. A sequence's bits do not depend on other sequences."""

    def __init__(self, module: nn.LSTM, library: ctypes.CDLL, num_threads: int) -> None:
        """Copy the weights. Raises OutOfMemory."""
        self._library, self._size = library, module.hidden_size
        weights = [
            getattr(module, f"weight_hh_l{layer}").detach().float().contiguous() for layer in range(module.num_layers)
        ]
        pointers = (ctypes.c_void_p * len(weights))(*(weight.data_ptr() for weight in weights))
        self._handle = library.native_lstm_create(len(weights), self._size, pointers, num_threads)
        if not self._handle:
            raise OutOfMemory(f"There is not enough memory for the codec ({self._last_error()}).")

    def advance(self, layer: int, sequences: Sequence[Steps]) -> list[Tensor]:
        """Advance each sequence through its steps, whose numbers may differ; return the outputs [T, H]."""
        outputs = [torch.empty(len(each.gates), self._size) for each in sequences]
        array = (LstmSequence * len(sequences))(
            *(
                LstmSequence(
                    len(each.gates),
                    each.gates.data_ptr(),
                    each.hidden.data_ptr(),
                    each.cell.data_ptr(),
                    output.data_ptr(),
                )
                for each, output in zip(sequences, outputs, strict=True)
            )
        )
        status = self._library.native_lstm_advance(self._handle, layer, array, len(sequences))
        if status == OUT_OF_MEMORY:
            raise OutOfMemory(f"There is not enough memory to decode the audio ({self._last_error()}).")
        if status:
            raise RuntimeError(f"The native LSTM failed: {self._last_error()}.")
        return outputs

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.native_lstm_destroy(self._handle)
            self._handle = None

    def _last_error(self) -> str:
        return (self._library.native_last_error() or b"").decode()


def native_lstm(module: nn.LSTM, num_threads: int) -> NativeLstm | None:
    """Return `module` packed for the library, or None if it is not built or does not support the module's size."""
    library = load_library() if module.hidden_size % SIZE_MULTIPLE == 0 else None
    return None if library is None else NativeLstm(module, library, num_threads)
