"""Layers of a codec on a CPU, computed by the C++ library: convolutions over time, and the recurrent part of LSTMs.

A row of a result has the same bits whatever the other rows and the number of threads are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audiocraft_api.core.errors import OutOfMemory
from audiocraft_api.engine.cpu.native.library import OUT_OF_MEMORY, ConvolutionSpec, LstmSequence

LSTM_SIZE_MULTIPLE = 16


class NativeLayers:
    """Creates layers that run one after the other, on the same threads."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        """Start the threads. Raises OutOfMemory."""
        self._handle = None  # `__del__` reads it even if this constructor fails
        self.library = library
        self._handle = self.created(library.native_workers_create(num_threads))

    def convolution(
        self, weights: Sequence[Tensor], bias: Tensor | None = None, dilation: int = 1
    ) -> NativeConvolution:
        """Pack weights [out, in], one matrix per tap. Raises OutOfMemory."""
        return NativeConvolution(self, torch.stack(list(weights)).float(), bias, dilation)

    def lstm(self, module: nn.LSTM) -> NativeLstm | None:
        """Pack the recurrent weights of a module; return None if its size is not supported. Raises OutOfMemory."""
        return None if module.hidden_size % LSTM_SIZE_MULTIPLE else NativeLstm(self, module)

    def elu(self, x: Tensor, out: Tensor) -> None:
        """Write ELU (alpha 1) of `x` into `out`. Both are contiguous."""
        self.library.native_elu(x.data_ptr(), x.numel(), out.data_ptr())

    def call(self, function: Any, *arguments: Any) -> None:
        """Call a function of the library that uses the threads. Raises OutOfMemory, or RuntimeError for an error."""
        status = function(self._handle, *arguments)
        if status == OUT_OF_MEMORY:
            raise OutOfMemory(f"There is not enough memory to decode the audio ({self._last_error()}).")
        if status:
            raise RuntimeError(f"The native codec failed: {self._last_error()}.")

    def create(self, function: Any, *arguments: Any) -> Any:
        """Create an object that needs the threads. Raises OutOfMemory."""
        return self.created(function(self._handle, *arguments))

    def created(self, handle: Any) -> Any:
        """Return the handle of an object that was created. Raises OutOfMemory if there is none."""
        if not handle:
            raise OutOfMemory(f"There is not enough memory for the codec ({self._last_error()}).")
        return handle

    def __del__(self) -> None:
        if self._handle:
            self.library.native_workers_destroy(self._handle)

    def _last_error(self) -> str:
        return (self.library.native_last_error() or b"").decode()


class NativeConvolution:
    """`y[t] = sum_j W_j x[t + j * dilation] + b`."""

    def __init__(self, layers: NativeLayers, weights: Tensor, bias: Tensor | None, dilation: int) -> None:
        """`weights` [taps, out, in] and `bias` [out] are copied. Raises OutOfMemory."""
        self._handle = None
        self._layers = layers
        num_taps, self._num_outputs, num_inputs = weights.shape
        self._span = (num_taps - 1) * dilation
        weights, bias = weights.contiguous(), None if bias is None else bias.float().contiguous()
        spec = ConvolutionSpec(
            outputs=self._num_outputs,
            inputs=num_inputs,
            taps=num_taps,
            dilation=dilation,
            weights=weights.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
        )
        self._handle = layers.created(layers.library.native_convolution_create(ctypes.byref(spec)))

    def __call__(self, x: Tensor) -> Tensor:
        """Return [n - span, out] for `x` [n, in] in float32 with n > span."""
        x = x.contiguous()
        y = torch.empty(x.shape[0] - self._span, self._num_outputs)
        function = self._layers.library.native_convolution_apply
        self._layers.call(function, self._handle, x.data_ptr(), y.shape[0], y.data_ptr())
        return y

    def __del__(self) -> None:
        if self._handle:
            self._layers.library.native_convolution_destroy(self._handle)


@dataclass(frozen=True)
class Steps:
    """The steps of one sequence in one layer, contiguous float32."""

    gates: Tensor  # [T, 4H], what the inputs and the biases add to the gates, in torch's order
    hidden: Tensor  # [H], updated
    cell: Tensor  # [H], updated


class NativeLstm:
    """The recurrent weights of a `torch.nn.LSTM`. A sequence's bits do not depend on other sequences."""

    def __init__(self, layers: NativeLayers, module: nn.LSTM) -> None:
        """Copy the weights. Raises OutOfMemory."""
        self._handle = None
        self._layers, self._size = layers, module.hidden_size
        weights = [
            getattr(module, f"weight_hh_l{layer}").detach().float().contiguous() for layer in range(module.num_layers)
        ]
        pointers = (ctypes.c_void_p * len(weights))(*(weight.data_ptr() for weight in weights))
        self._handle = layers.create(layers.library.native_lstm_create, len(weights), self._size, pointers)

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
        self._layers.call(self._layers.library.native_lstm_advance, self._handle, layer, array, len(sequences))
        return outputs

    def __del__(self) -> None:
        if self._handle:
            self._layers.library.native_lstm_destroy(self._handle)
