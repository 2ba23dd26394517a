"""The body of the language model for one position or many: the order of operations, without the memory.

Where keys and values lie, and over which the queries attend, is the caller's: it passes the attention in. So the eager
backend and the captured step run the same lines. In half precision the sums between the blocks and the norms stay
float32, as they do under audiocraft's autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from audiocraft_api.engine.weights import NORM_EPS, DecoderWeights, LayerWeights

PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

Linear = Callable[[Tensor], Tensor]  # [..., I] -> [..., O], without bias
SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v [N, D] each -> [N, D]
CrossAttention = Callable[[int, Tensor], Tensor]  # layer, q [N, D] -> [N, D], zeros for a null row


class TransformerBody:
    """Layers, final norm and heads over prepared linears."""

    def __init__(self, weights: DecoderWeights, prepare: Callable[[Tensor], Linear]) -> None:
        """`prepare` turns a weight [O, I] into the linear that multiplies with it."""
        self._layers = [_Layer(layer, prepare) for layer in weights.layers]
        self._norm = _norm(weights.out_norm_weight, weights.out_norm_bias)
        self._heads = prepare(torch.cat(weights.heads))  # one product for all codebooks, [K codebook_size, D]
        self._num_codebooks = weights.num_codebooks

    def __call__(self, x: Tensor, attend: SelfAttention, attend_cross: CrossAttention | None) -> Tensor:
        """Run the layers on embedded positions float32 [N, D]; `attend_cross` None skips cross-attention."""
        for index, layer in enumerate(self._layers):
            q, k, v = layer.qkv(layer.norm1(x)).chunk(3, dim=-1)
            x = x + layer.self_out(attend(index, q, k, v))
            if attend_cross is not None:
                x = x + layer.cross_out(attend_cross(index, layer.cross_query(layer.norm_cross(x))))
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Turn the last layer's output [N, D] into logits [N, K, codebook_size]."""
        return self._heads(self._norm(x)).view(len(x), self._num_codebooks, -1)


class _Layer:
    def __init__(self, layer: LayerWeights, prepare: Callable[[Tensor], Linear]) -> None:
        self.norm1 = _norm(layer.norm1_weight, layer.norm1_bias)
        self.qkv, self.self_out = prepare(layer.qkv), prepare(layer.self_out)
        if layer.cross is not None:
            self.norm_cross = _norm(layer.cross.norm_weight, layer.cross.norm_bias)
            self.cross_query, self.cross_out = prepare(layer.cross.query), prepare(layer.cross.out)
        self.norm2 = _norm(layer.norm2_weight, layer.norm2_bias)
        self.linear1, self.linear2 = prepare(layer.linear1), prepare(layer.linear2)


def _norm(weight: Tensor, bias: Tensor) -> Linear:
    """Normalise in float32 and give the type that the next product takes."""
    weight32, bias32 = weight.float(), bias.float()
    return lambda x: F.layer_norm(x, (x.shape[-1],), weight32, bias32, NORM_EPS).to(weight.dtype)
