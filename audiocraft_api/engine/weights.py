"""The language model's weights by name, taken from a loaded audiocraft model without copying.

The backends support the MusicGen family: pre-norm, no biases, sinusoidal positions, packed q/k/v. Any other
architecture is rejected here, when the model is prepared, because a silent difference would only show as worse audio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from audiocraft_api.core.errors import GenerationFailed

NORM_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class CrossWeights:
    """The cross-attention of one layer."""

    norm_weight: Tensor  # [D]
    norm_bias: Tensor  # [D]
    query: Tensor  # [D, D]
    key: Tensor  # [D, D]
    value: Tensor  # [D, D]
    out: Tensor  # [D, D]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer: self-attention, cross-attention (if the model has it), feed-forward."""

    norm1_weight: Tensor  # [D]
    norm1_bias: Tensor  # [D]
    qkv: Tensor  # [3 D, D], rows q, k, v; heads contiguous in each
    self_out: Tensor  # [D, D]
    cross: CrossWeights | None
    norm2_weight: Tensor  # [D]
    norm2_bias: Tensor  # [D]
    linear1: Tensor  # [F, D]
    linear2: Tensor  # [D, F]


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """Everything that a backend needs from a language model."""

    embeddings: list[Tensor]  # K of [codebook_size + 1, D]; the last row is the special token
    layers: list[LayerWeights]
    out_norm_weight: Tensor  # [D]
    out_norm_bias: Tensor  # [D]
    heads: list[Tensor]  # K of [codebook_size, D]
    num_heads: int
    max_period: float
    positional_scale: float

    @property
    def dim(self) -> int:
        return int(self.out_norm_weight.shape[0])

    @property
    def codebook_size(self) -> int:
        return int(self.heads[0].shape[0])

    @property
    def num_codebooks(self) -> int:
        return len(self.heads)

    def kv_bytes(self, capacity: int, item_bytes: int) -> int:
        """Return the bytes of one slot's self-attention keys and values."""
        return 2 * len(self.layers) * capacity * self.dim * item_bytes


def decoder_weights(lm: Any) -> DecoderWeights:
    """Return the weights of an audiocraft `LMModel`. Raises GenerationFailed for an unsupported architecture."""
    problems = list(_unsupported(lm))
    if problems:
        raise GenerationFailed(
            f"The batching engine does not support this checkpoint: {', '.join(problems)}. Use the plain engine."
        )
    return DecoderWeights(
        embeddings=[embedding.weight.detach() for embedding in lm.emb],
        layers=[_layer_weights(layer) for layer in lm.transformer.layers],
        out_norm_weight=lm.out_norm.weight.detach(),
        out_norm_bias=lm.out_norm.bias.detach(),
        heads=[head.weight.detach() for head in lm.linears],
        num_heads=lm.transformer.layers[0].self_attn.num_heads,
        max_period=float(lm.transformer.max_period),
        positional_scale=float(lm.transformer.positional_scale),
    )


def converted(weights: DecoderWeights, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Return the weights in a type and on a device; tensors that already are share their memory."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, dtype)
        if isinstance(value, list):
            return [convert(item) for item in value]
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: convert(getattr(value, field.name)) for field in fields(value)})
        return value

    return cast(DecoderWeights, convert(weights))


def position_table(capacity: int, dim: int, max_period: float) -> Tensor:
    """Return sinusoidal positions, float32 [capacity, D], cosines first.

    As audiocraft's `transformer.py::create_sin_embedding`.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32).view(1, -1)
    positions = torch.arange(capacity, dtype=torch.float32).view(-1, 1)
    phase = positions / (torch.full([], max_period) ** (index / (half - 1)))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


def _layer_weights(layer: Any) -> LayerWeights:
    cross = None
    if layer.cross_attention is not None:
        query, key, value = layer.cross_attention.in_proj_weight.detach().chunk(3)
        cross = CrossWeights(
            norm_weight=layer.norm_cross.weight.detach(),
            norm_bias=layer.norm_cross.bias.detach(),
            query=query,
            key=key,
            value=value,
            out=layer.cross_attention.out_proj.weight.detach(),
        )
    return LayerWeights(
        norm1_weight=layer.norm1.weight.detach(),
        norm1_bias=layer.norm1.bias.detach(),
        qkv=layer.self_attn.in_proj_weight.detach(),
        self_out=layer.self_attn.out_proj.weight.detach(),
        cross=cross,
        norm2_weight=layer.norm2.weight.detach(),
        norm2_bias=layer.norm2.bias.detach(),
        linear1=layer.linear1.weight.detach(),
        linear2=layer.linear2.weight.detach(),
    )


def _unsupported(lm: Any) -> Iterator[str]:
    transformer, first = lm.transformer, lm.transformer.layers[0]
    attention = first.self_attn
    if lm.out_norm is None or not first.norm_first:
        yield "its norms follow the blocks"
    pattern = lm.pattern_provider
    if not hasattr(pattern, "delays") or pattern.flatten_first or pattern.empty_initial:
        yield "its codebooks do not use the delay pattern"
    if transformer.positional_embedding != "sin":
        yield "its positions are not sinusoidal"
    if (
        not attention.custom
        or attention.kv_repeat != 1
        or attention.qk_layer_norm
        or attention.past_context is not None
    ):
        yield "its attention is of an unsupported kind"
    if first.activation is not nn.functional.gelu:
        yield "its activation is not gelu"
    if not isinstance(first.layer_scale_1, nn.Identity):
        yield "its layers have scales"
    # Without biases, a context of zeros has keys and values of exact zeros, so the row's whole cross-attention is zero.
    if any(name.endswith("bias") and "norm" not in name for name, _ in transformer.named_parameters()):
        yield "its projections have biases"
    if any(head.bias is not None for head in lm.linears):
        yield "its heads have biases"
    if lm.fuser.fuse2cond["sum"] or lm.fuser.fuse2cond["input_interpolate"]:
        yield "its conditions are added to the input"
