"""Layers of an EnCodec decoder as stages that accept any number of samples and return each output sample once.

A stage has the weights and is shared. Its `new_state` returns what one waveform needs between blocks: the tail of the
input that later outputs still depend on. Nothing is computed twice, and a layer's lookahead follows from its kernel,
stride and dilation. Everything is time-major, `[T, C]`: a convolution is then one matrix product per tap, and a
transposed convolution writes its output in place. On a CPU that is more than twice as fast as the channel-major
kernels. The products are the native library's or, without it, PyTorch's, which are the reference implementation. Knows
nothing of codes, requests or the recurrent layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from audiocraft_api.engine.cpu.native_layers import NativeLayers

Activation = Callable[[Tensor, Tensor], None]  # writes the activation of its first argument into its second


class StageState(Protocol):
    """The state of one waveform in a stage."""

    def feed(self, x: Tensor, final: bool) -> Tensor:
        """Process the next samples [t, C]; return the outputs that are complete now, or all the rest if `final`."""


class Stage(Protocol):
    """The weights of a layer, shared by all waveforms."""

    def new_state(self) -> StageState: ...


class Linear:
    """`x W^T + b`, with the weights packed for oneDNN's kernel on CPUs that have it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` [out, in] is copied, `bias` [out] is not."""
        self.num_outputs = weight.shape[0]
        self._bias = bias
        self._packed = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None) if self._packed else weight.clone()
        )

    def __call__(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return [n, out] for `x` [n, in], plus `addend` [n, out]."""
        if not self._packed:
            y = F.linear(x, self._weight, self._bias)
            return y if addend is None else y.add_(addend)
        if addend is None:
            y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        else:
            y = torch.ops.mkldnn._linear_pointwise.binary(x, addend, self._weight, self._bias, "add")
        return y  # type: ignore[no-any-return]


def elu(x: Tensor, out: Tensor) -> None:
    """Write ELU (alpha 1) of `x` into `out`."""
    if x.device.type != "cpu":
        torch._C._nn.elu(x, out=out)  # type: ignore[call-arg]
        return
    # Takes a third of the time of torch's ELU, whose expm1 is slow on CPUs. exp(x) - 1 is never below x, so the maximum
    # selects the right branch; its error is at most half a unit in the last place of 1.
    torch.exp(x, out=out).sub_(1.0).clamp_(max=0.0)
    torch.maximum(x, out, out=out)


def _join(held: Tensor | None, x: Tensor, activation: Activation | None = None) -> Tensor:
    """Return the held input followed by the new one, to which the activation is applied if there is one."""
    if activation is None:
        return x.contiguous() if held is None else torch.cat((held, x))
    start = 0 if held is None else held.shape[0]
    joined = x.new_empty(start + x.shape[0], x.shape[1])
    if held is not None:
        joined[:start] = held
    activation(x.contiguous(), joined[start:])
    return joined


class _LinearTaps:
    """A correlation over time with one product per tap: `y[t] = sum_j W_j x[t + j * dilation] + b`."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, dilation: int) -> None:
        self._span = (len(weights) - 1) * dilation
        self._dilation = dilation
        self._products = [Linear(weight, bias if tap == 0 else None) for tap, weight in enumerate(weights)]

    def __call__(self, x: Tensor) -> Tensor:
        length = x.shape[0] - self._span
        y = self._products[0](x[:length])
        for tap, product in enumerate(self._products[1:], 1):
            y = product(x[tap * self._dilation : tap * self._dilation + length], addend=y)
        return y


class _JointTaps:
    """The same with a single product, for few outputs (the last layer has one): all taps are its columns."""

    def __init__(self, product: Callable[[Tensor], Tensor], num_taps: int, bias: Tensor | None, dilation: int) -> None:
        self._product, self._num_taps, self._bias, self._dilation = product, num_taps, bias, dilation

    def __call__(self, x: Tensor) -> Tensor:
        columns = self._product(x).chunk(self._num_taps, dim=1)
        length = x.shape[0] - (self._num_taps - 1) * self._dilation
        y = columns[0][:length].clone() if self._bias is None else columns[0][:length] + self._bias
        for tap, column in enumerate(columns[1:], 1):
            y += column[tap * self._dilation : tap * self._dilation + length]
        return y


class _Taps:
    """A correlation over time without padding."""

    def __init__(
        self, weights: Sequence[Tensor], bias: Tensor | None, native: NativeLayers | None, dilation: int = 1
    ) -> None:
        """`weights` [out, in] per tap."""
        self.span = (len(weights) - 1) * dilation
        self.num_outputs, num_inputs = weights[0].shape
        if 1 < len(weights) * self.num_outputs <= num_inputs:
            joined = torch.cat(list(weights))
            product = native.convolution([joined]) if native else Linear(joined)
            self._correlate: Callable[[Tensor], Tensor] = _JointTaps(product, len(weights), bias, dilation)
        elif native:
            self._correlate = native.convolution(weights, bias, dilation)
        else:
            self._correlate = _LinearTaps(weights, bias, dilation)

    def __call__(self, x: Tensor) -> Tensor:
        """Return [n - span, out] for a contiguous `x` [n, in]."""
        return self._correlate(x) if x.shape[0] > self.span else x.new_empty(0, self.num_outputs)


class Conv:
    """A convolution of stride 1 that keeps the length. Only the true ends of the waveform are padded."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        native: NativeLayers | None,
        *,
        dilation: int,
        left: int,
        right: int,
        mode: str,
        activation: Activation | None,
    ) -> None:
        """`weight` [out, in, kernel]; `left` and `right` are the padding, `mode` torch's name for it.

        `activation` is applied to the input first.
        """
        self.activation = activation
        self.taps = _Taps(list(weight.unbind(2)), bias, native, dilation)
        self.left, self.right, self._mode = left, right, mode

    def new_state(self) -> ConvState:
        return ConvState(self)

    def pad(self, x: Tensor, left: int, right: int) -> Tensor:
        """Pad `x` [n, C] in time as EnCodec does.

        A reflection needs more samples than it adds. Shorter inputs are first extended by zeros at their end, which are
        removed again (transformers `modeling_encodec.py::EncodecConv1d._pad1d`).
        """
        if not left and not right:
            return x
        extra = max(0, max(left, right) + 1 - x.shape[0]) if self._mode == "reflect" else 0
        padded = F.pad(F.pad(x.T[None], (0, extra)), (left, right), self._mode)[0]
        return padded[:, : padded.shape[1] - extra].T.contiguous()


class ConvState:
    def __init__(self, conv: Conv) -> None:
        self._conv = conv
        self._held: Tensor | None = None  # [span, C], or all input so far while it is too short to reflect
        self._started = False

    def feed(self, x: Tensor, final: bool) -> Tensor:
        conv = self._conv
        x = _join(self._held, x, conv.activation)
        if not self._started:
            if final:
                return conv.taps(conv.pad(x, conv.left, conv.right))
            if x.shape[0] <= max(conv.left, conv.right):
                self._held = x
                return x.new_empty(0, conv.taps.num_outputs)
            x = conv.pad(x, conv.left, 0)
            self._started = True
        if final:
            x = conv.pad(x, 0, conv.right)
        self._held = x[x.shape[0] - conv.taps.span :].clone()
        return conv.taps(x)


class Upsample:
    """A transposed convolution: each input yields `stride` outputs, computed from it and the inputs just before it."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        native: NativeLayers | None,
        *,
        stride: int,
        left: int,
        activation: Activation | None,
    ) -> None:
        """`weight` [in, out, kernel]; `left` outputs are trimmed at the start, and the length becomes n * stride.

        `activation` is applied to the input first.
        """
        self.activation = activation
        num_inputs, self.num_outputs, _ = weight.shape
        taps = [
            F.pad(piece, (0, stride - piece.shape[2])).permute(2, 1, 0).reshape(-1, num_inputs)
            for piece in reversed(torch.split(weight, stride, dim=2))
        ]  # each [stride * out, in]; the last belongs to the current input
        self.taps = _Taps(taps, None if bias is None else bias.repeat(stride), native)
        self.stride, self.left = stride, left

    def new_state(self) -> UpsampleState:
        return UpsampleState(self)


class UpsampleState:
    def __init__(self, upsample: Upsample) -> None:
        self._upsample = upsample
        self._held: Tensor | None = None  # [span, C] inputs, zeros before the first
        self._to_trim = upsample.left

    def feed(self, x: Tensor, final: bool) -> Tensor:
        up = self._upsample
        silence = x.new_zeros(up.taps.span, x.shape[1])
        x = _join(silence if self._held is None else self._held, x, up.activation)
        if final:
            x = torch.cat((x, silence))
        self._held = x[x.shape[0] - up.taps.span :].clone()
        y = up.taps(x).view(-1, up.num_outputs)  # [n * stride, C]
        if final:
            y = y[: max(0, y.shape[0] - up.taps.span * up.stride + up.left)]
        trimmed = min(self._to_trim, y.shape[0])
        self._to_trim -= trimmed
        return y[trimmed:]


class Residual:
    """`shortcut(x) + branch(x)`. The branch has lookahead, so the shortcut's output is held back."""

    def __init__(self, branch: Sequence[Stage], shortcut: Conv | None) -> None:
        """`shortcut` is a convolution of kernel 1, or None for the input itself."""
        self.branch, self.shortcut = branch, shortcut

    def new_state(self) -> ResidualState:
        return ResidualState(self)


class ResidualState:
    def __init__(self, residual: Residual) -> None:
        self._shortcut = residual.shortcut
        self._branch = [stage.new_state() for stage in residual.branch]
        self._held: Tensor | None = None  # [n, C] outputs of the shortcut that the branch has not reached

    def feed(self, x: Tensor, final: bool) -> Tensor:
        y = feed_through(self._branch, x, final)
        short = _join(self._held, x if self._shortcut is None else self._shortcut.taps(x))
        self._held = short[y.shape[0] :].clone()
        return y.add_(short[: y.shape[0]])


def feed_through(states: Sequence[StageState], x: Tensor, final: bool) -> Tensor:
    """Feed `x` [t, C] through one stage after the other."""
    for state in states:
        x = state.feed(x, final)
    return x
