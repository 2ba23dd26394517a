"""The body of the language model for one or many positions: the order of operations, without the key/value cache.

The caller passes the attention in, because it decides where keys and values are stored and which of them the queries
attend to. So the eager backend and the captured step share this code. In half precision, norms and the sums between
blocks stay float32, as under audiocraft's autocast.
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
CrossAttention = Callable[[int, Tensor], Tensor]  # layer, q [N, D] -> [N, D], zeros for an unconditional row


class TransformerBody:
    """Layers, final norm and heads."""

    def __init__(self, weights: DecoderWeights, make_linear: Callable[[Tensor], Linear]) -> None:
        """`make_linear` turns a weight [O, I] into the function that multiplies by it."""
        self._layers = [_Layer(layer, make_linear) for layer in weights.layers]
        self._norm = _norm(weights.out_norm_weight, weights.out_norm_bias)
        self._heads = make_linear(torch.cat(weights.heads))  # one product for all codebooks, [K codebook_size, D]
        self._num_codebooks = weights.num_codebooks

    def __call__(self, x: Tensor, attend: SelfAttention, attend_cross: CrossAttention | None) -> Tensor:
        """Apply the layers to embedded positions float32 [N, D]; `attend_cross` None skips cross-attention."""
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
    def __init__(self, layer: LayerWeights, make_linear: Callable[[Tensor], Linear]) -> None:
        self.norm1 = _norm(layer.norm1_weight, layer.norm1_bias)
        self.qkv, self.self_out = make_linear(layer.qkv), make_linear(layer.self_out)
        if layer.cross is not None:
            self.norm_cross = _norm(layer.cross.norm_weight, layer.cross.norm_bias)
            self.cross_query, self.cross_out = make_linear(layer.cross.query), make_linear(layer.cross.out)
        self.norm2 = _norm(layer.norm2_weight, layer.norm2_bias)
        self.linear1, self.linear2 = make_linear(layer.linear1), make_linear(layer.linear2)


def _norm(weight: Tensor, bias: Tensor) -> Linear:
    """Return a layer norm that computes in float32 and returns the weight's type."""
    weight32, bias32 = weight.float(), bias.float()
    return lambda x: F.layer_norm(x, (x.shape[-1],), weight32, bias32, NORM_EPS).to(weight.dtype)
