"""The body of the language model for one position or many: the order of operations, without the memory.

Where keys and values lie, and over which the queries attend, is the caller's: it passes the attention in. So the eager
runner and the captured graph run the same lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from audiocraft_api.engine.weights import NORM_EPS, CrossWeights, DecoderWeights, LayerWeights

Linear = Callable[[Tensor], Tensor]  # [..., I] -> [..., O], without bias
SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v [N, D] each -> [N, D]
CrossAttention = Callable[[int, Tensor], Tensor]  # layer, q [N, D] -> [N, D], zeros for a null row


@dataclass(frozen=True, eq=False)
class _Cross:
    weights: CrossWeights
    query: Linear
    out: Linear


@dataclass(frozen=True, eq=False)
class _Layer:
    weights: LayerWeights
    qkv: Linear
    self_out: Linear
    cross: _Cross | None
    linear1: Linear
    linear2: Linear


class TransformerBody:
    """Layers, final norm and heads over prepared linears."""

    def __init__(self, weights: DecoderWeights, prepare: Callable[[Tensor], Linear]) -> None:
        """`prepare` turns a weight [O, I] into the linear that multiplies with it."""
        self._layers = [_prepare_layer(layer, prepare) for layer in weights.layers]
        self._norm = (weights.out_norm_weight, weights.out_norm_bias)
        self._heads = prepare(torch.cat(weights.heads))  # one product for all codebooks, [K card, D]
        self._num_codebooks = weights.num_codebooks

    def __call__(self, x: Tensor, attend: SelfAttention, attend_cross: CrossAttention | None) -> Tensor:
        """Run the layers on embedded positions [N, D]; `attend_cross` None skips cross-attention."""
        for index, layer in enumerate(self._layers):
            w = layer.weights
            q, k, v = layer.qkv(_norm(x, w.norm1_weight, w.norm1_bias)).chunk(3, dim=-1)
            x = x + layer.self_out(attend(index, q, k, v))
            if layer.cross is not None and attend_cross is not None:
                query = layer.cross.query(_norm(x, layer.cross.weights.norm_weight, layer.cross.weights.norm_bias))
                x = x + layer.cross.out(attend_cross(index, query))
            x = x + layer.linear2(F.gelu(layer.linear1(_norm(x, w.norm2_weight, w.norm2_bias))))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Turn the last layer's output [N, D] into logits [N, K, card]."""
        return self._heads(_norm(x, *self._norm)).view(len(x), self._num_codebooks, -1)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPS)


def _prepare_layer(layer: LayerWeights, prepare: Callable[[Tensor], Linear]) -> _Layer:
    cross = None
    if layer.cross is not None:
        cross = _Cross(layer.cross, prepare(layer.cross.query), prepare(layer.cross.out))
    return _Layer(
        weights=layer,
        qkv=prepare(layer.qkv),
        self_out=prepare(layer.self_out),
        cross=cross,
        linear1=prepare(layer.linear1),
        linear2=prepare(layer.linear2),
    )
