"""Reads the layers of EnCodec decoders, of transformers' class and of audiocraft's own (SEANet), as stages.

Weight norm is folded into a copy of the weights, and each activation is merged into the layer after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audiocraft_api.engine.codec.lstm import Lstm
from audiocraft_api.engine.codec.stages import Conv, Residual, Stage, Upsample, elu
from audiocraft_api.engine.cpu.native_layers import NativeLayers


class Unsupported(Exception):
    """The codec has a part that cannot be decoded in blocks."""


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a decoder in the order in which codes pass through them."""

    codebooks: list[Tensor]  # [codebook size, D] each
    before: list[Stage]
    lstm: Lstm
    after: list[Stage]
    channels: int


def read(model: Any, native: NativeLayers | None) -> DecoderParts:
    """Read transformers' `EncodecModel` or audiocraft's `EncodecModel`. `native` computes the layers, or PyTorch does.

    Raises AttributeError or Unsupported for other structures.
    """
    reader = _Reader(native)
    if hasattr(model, "config"):
        if model.config.chunk_length_s is not None:
            raise Unsupported("it decodes overlapping chunks")
        codebooks = [layer.codebook.embed for layer in model.quantizer.layers]
        return reader.parts(model.decoder.layers, codebooks, int(model.config.audio_channels))
    if model.renormalize:
        raise Unsupported("it renormalizes loudness")
    quantizers = model.quantizer.vq.layers[: model.num_codebooks]
    if any(type(layer.project_out).__name__ != "Identity" for layer in quantizers):
        raise Unsupported("its codebooks are projected")
    return reader.parts(model.decoder.model, [layer.codebook for layer in quantizers], int(model.channels))


_RECURRENT = ("EncodecLSTM", "StreamableLSTM")
_CONVOLUTIONS = ("EncodecConv1d", "StreamableConv1d")
_TRANSPOSED = ("EncodecConvTranspose1d", "StreamableConvTranspose1d")
_RESIDUAL = ("EncodecResnetBlock", "SEANetResnetBlock")


class _Reader:
    """Converts the layers of one decoder."""

    def __init__(self, native: NativeLayers | None) -> None:
        self._native = native
        self._activation = native.elu if native else elu

    def parts(self, layers: Sequence[Any], codebooks: list[Tensor], channels: int) -> DecoderParts:
        layers = list(layers)
        recurrent = [index for index, layer in enumerate(layers) if type(layer).__name__ in _RECURRENT]
        if len(recurrent) != 1:
            raise Unsupported(f"it has {len(recurrent)} recurrent layers")
        return DecoderParts(
            codebooks,
            self._stages(layers[: recurrent[0]]),
            Lstm(_lstm(layers[recurrent[0]]), self._native),
            self._stages(layers[recurrent[0] + 1 :]),
            channels,
        )

    def _stages(self, layers: Sequence[Any]) -> list[Stage]:
        stages: list[Stage] = []
        activated = False
        for layer in layers:
            name = type(layer).__name__
            if name == "ELU" and layer.alpha == 1.0 and not activated:
                activated = True
                continue
            if name in _CONVOLUTIONS:
                stages.append(self._conv(layer, activated))
            elif name in _TRANSPOSED:
                stages.append(self._upsample(layer, activated))
            elif name in _RESIDUAL and not activated:
                stages.append(self._residual(layer))
            else:
                raise Unsupported(f"it has a layer of type {name}")
            activated = False
        if activated:
            raise Unsupported("it ends with an activation")
        return stages

    def _residual(self, layer: Any) -> Residual:
        shortcut = None if type(layer.shortcut).__name__ == "Identity" else self._conv(layer.shortcut, activated=False)
        if shortcut is not None and shortcut.taps.span:
            raise Unsupported("it has a shortcut with a kernel over 1")
        return Residual(self._stages(layer.block), shortcut)

    def _conv(self, layer: Any, activated: bool) -> Conv:
        conv, weight = _folded(layer, "conv")
        if conv.stride[0] != 1 or conv.groups != 1:
            raise Unsupported("it has a convolution with a stride or groups")
        if layer.pad_mode not in ("reflect", "constant", "replicate"):
            raise Unsupported(f"it uses {layer.pad_mode} padding")
        span = (conv.kernel_size[0] - 1) * conv.dilation[0]
        right = 0 if layer.causal else span // 2
        return Conv(
            weight,
            _copy(conv.bias),
            self._native,
            dilation=conv.dilation[0],
            left=span - right,
            right=right,
            mode=layer.pad_mode,
            activation=self._activation if activated else None,
        )

    def _upsample(self, layer: Any, activated: bool) -> Upsample:
        conv, weight = _folded(layer, "convtr" if hasattr(layer, "convtr") else "conv")
        if conv.groups != 1 or conv.dilation[0] != 1 or conv.output_padding[0]:
            raise Unsupported("it has a transposed convolution with groups, dilation or padding")
        trimmed = conv.kernel_size[0] - conv.stride[0]
        if trimmed < 0:
            raise Unsupported("it has a transposed convolution that leaves gaps")
        right = math.ceil(trimmed * layer.trim_right_ratio) if layer.causal else trimmed // 2
        return Upsample(
            weight,
            _copy(conv.bias),
            self._native,
            stride=conv.stride[0],
            left=trimmed - right,
            activation=self._activation if activated else None,
        )


def _folded(layer: Any, name: str) -> tuple[Any, Tensor]:
    """Return a layer's convolution and its weight.

    transformers parametrizes the convolution, whose weight is then always current. audiocraft wraps it once more and
    uses torch's older weight norm, whose weight is current only after a call.
    """
    conv = getattr(layer, name)
    owner = layer if hasattr(layer, "norm_type") else conv
    if owner.norm_type not in ("weight_norm", "none"):
        raise Unsupported(f"it has a convolution with {owner.norm_type}")
    if owner is layer:
        return conv, conv.weight.detach()
    conv = getattr(conv, name)
    if owner.norm_type == "none":
        return conv, conv.weight.detach()
    direction = conv.weight_v.detach()
    return conv, direction * (conv.weight_g.detach() / torch.norm_except_dim(direction, 2, 0))


def _lstm(layer: Any) -> nn.LSTM:
    module = layer.lstm
    if module.bidirectional or module.batch_first or module.proj_size or not getattr(layer, "skip", True):
        raise Unsupported("its recurrent layer is of an unsupported kind")
    return module  # type: ignore[no-any-return]


def _copy(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()
