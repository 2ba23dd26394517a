"""Random decoder weights of any size, without a model, and inputs to decode with them."""

from __future__ import annotations

import torch
from torch import Tensor

from audiocraft_api.engine.backend import Backend
from audiocraft_api.engine.weights import CrossWeights, DecoderWeights, LayerWeights

CODEBOOK_SIZE, NUM_CODEBOOKS = 64, 4


def random_weights(dim: int = 128, num_heads: int = 2, num_layers: int = 3, has_cross: bool = True) -> DecoderWeights:
    generator = torch.Generator().manual_seed(0)

    def matrix(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, generator=generator) / inputs**0.5

    def vector(mean: float) -> Tensor:
        return mean + 0.1 * torch.randn(dim, generator=generator)

    def layer() -> LayerWeights:
        cross = CrossWeights(vector(1), vector(0), *(matrix(dim, dim) for _ in range(4))) if has_cross else None
        return LayerWeights(
            norm1_weight=vector(1),
            norm1_bias=vector(0),
            qkv=matrix(3 * dim, dim),
            self_out=matrix(dim, dim),
            cross=cross,
            norm2_weight=vector(1),
            norm2_bias=vector(0),
            linear1=matrix(4 * dim, dim),
            linear2=matrix(dim, 4 * dim),
        )

    return DecoderWeights(
        embeddings=[matrix(CODEBOOK_SIZE + 1, dim) for _ in range(NUM_CODEBOOKS)],
        layers=[layer() for _ in range(num_layers)],
        out_norm_weight=vector(1),
        out_norm_bias=vector(0),
        heads=[matrix(CODEBOOK_SIZE, dim) for _ in range(NUM_CODEBOOKS)],
        num_heads=num_heads,
        max_period=10_000.0,
        positional_scale=1.0,
    )


def some_tokens(num_steps: int, seed: int = 1) -> Tensor:
    """Return random tokens int64 [S, K], special tokens included."""
    return torch.randint(
        0, CODEBOOK_SIZE + 1, (num_steps, NUM_CODEBOOKS), generator=torch.Generator().manual_seed(seed)
    )


def some_context(dim: int, length: int, seed: int = 2) -> Tensor:
    """Return a random context or prefix, float32 [length, dim]."""
    return torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))


def row_logits(backend: Backend, context: Tensor | None, tokens: Tensor, slot: int = 0, start: int = 0) -> Tensor:
    """Decode one row alone, step by step. Returns logits float32 [S, K, codebook_size]."""
    backend.begin(slot, context)
    steps = [backend.decode([slot], tokens[step : step + 1], [start + step])[0] for step in range(len(tokens))]
    return torch.stack(steps)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def with_outliers(weights: DecoderWeights, factor: float) -> DecoderWeights:
    """Scale one channel of every norm, in place, to get the outlier activations of trained models."""
    for layer in weights.layers:
        for norm in (layer.norm1_weight, layer.norm2_weight, layer.cross and layer.cross.norm_weight):
            if norm is not None:
                norm[5] *= factor
    return weights
