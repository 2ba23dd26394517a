"""A reference implementation in PyTorch with every rounding of the native decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from audiocraft_api.engine.torch_backend import TorchBackend
from audiocraft_api.engine.weights import DecoderWeights, LayerWeights


def rounded(matrix: Tensor, bits: int) -> Tensor:
    """Round each group of inputs to integers as the decoder does; its largest magnitude becomes the lowest integer."""
    group, lowest = 128 if matrix.shape[1] % 128 == 0 else 64, -(2 ** (bits - 1))
    groups = matrix.view(matrix.shape[0], -1, group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (largest / lowest).half().float()
    return ((groups / scales).round().clamp(lowest, -lowest - 1) * scales).view_as(matrix)


def rounded_weights(weights: DecoderWeights, bits: int) -> DecoderWeights:
    def rounded_layer(layer: LayerWeights) -> LayerWeights:
        names = ("qkv", "self_out", "linear1", "linear2")
        cross_names = ("query", "key", "value", "out")
        cross = layer.cross and replace(
            layer.cross, **{name: rounded(getattr(layer.cross, name), bits) for name in cross_names}
        )
        return replace(layer, cross=cross, **{name: rounded(getattr(layer, name), bits) for name in names})

    heads = [rounded(head, bits) for head in weights.heads]
    return replace(weights, layers=[rounded_layer(layer) for layer in weights.layers], heads=heads)


def rounded_inputs(x: Tensor, bits: int) -> Tensor:
    """Round each group of activations as the decoder does.

    To two bytes, or with 6-bit weights to one byte if the group has no outliers.
    """
    groups = x.unflatten(-1, (-1, 128 if x.shape[-1] % 128 == 0 else 64))
    largest = groups.abs().amax(-1, keepdim=True)
    is_one_byte = (bits == 6) & (largest <= 5 * groups.square().mean(-1, keepdim=True).sqrt())
    steps = torch.where(is_one_byte, 127.0, 127.0 * 256)
    return torch.where(largest > 0, (groups * steps / largest).round() * largest / steps, 0).flatten(-2)


def rounded_vectors(vectors: Tensor, bits: int) -> Tensor:
    """Round keys or values [..., d] to integers with one scale each, as kv_cache.h does."""
    lowest = -(2 ** (bits - 1))
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    scales = (largest / lowest).bfloat16().float()
    return (vectors / scales).round().clamp(lowest, -lowest - 1) * scales


def hadamard_transformed(vectors: Tensor) -> Tensor:
    """Multiply vectors [..., d] by the Hadamard matrix, in blocks of the largest power of two that divides d."""
    block = vectors.shape[-1] & -vectors.shape[-1]
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (vectors.unflatten(-1, (-1, block)) @ matrix).flatten(-2)


class RoundedReference(TorchBackend):
    """`TorchBackend` in float32 arithmetic with every rounding of the native decoder."""

    def __init__(self, weights: DecoderWeights, bits: int, capacity: int) -> None:
        def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: F.linear(rounded_inputs(x, bits), weight)

        super().__init__(rounded_weights(weights, bits), num_slots=1, capacity=capacity, make_linear=linear)
        self._bits, write = bits, self._cache.write
        self._cache.write = lambda layer, slot, position, k, v: write(  # type: ignore[method-assign]
            layer, slot, position, *self._rounded_pair(k, v)
        )

    def _pairs_of(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [self._rounded_pair(*pair) for pair in super()._pairs_of(rounded_inputs(context, self._bits))]

    def _rounded_pair(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        block = keys.shape[-1] & -keys.shape[-1]
        rounded_keys = hadamard_transformed(rounded_vectors(hadamard_transformed(keys), self._bits)) / block
        return rounded_keys, rounded_vectors(values, self._bits)
