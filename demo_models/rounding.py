"""Rounds weights, keys and values in training as the service's int6 does, so that the model learns to be exact with it.

Gradients pass a rounded tensor unchanged (the straight-through estimator).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST, _HIGHEST = -32, 31  # integers of six bits
_GROUP = 128  # inputs of a weight matrix that share a scale


def round_vectors(vectors: Tensor) -> Tensor:
    """Round vectors [..., D] to integers of six bits with one scale for each; the largest magnitude becomes -32."""
    with torch.no_grad():
        largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
        scales = torch.where(largest == 0, 1.0, largest / _LOWEST)
        error = (vectors / scales).round_().clamp_(_LOWEST, _HIGHEST).mul_(scales).sub_(vectors)
    return vectors + error


def round_weights(matrix: Tensor) -> Tensor:
    """Round a matrix [outputs, inputs] with one scale for each 128 inputs of an output."""
    return round_vectors(matrix.unflatten(-1, (-1, _GROUP))).flatten(-2)


def hadamard(size: int) -> Tensor:
    """Return the Hadamard matrix [size, size] for a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def round_keys(keys: Tensor) -> Tensor:
    """Round keys [..., D] as the engine stores them: rotated, so that no dimension is far above the others."""
    rotation = hadamard(keys.shape[-1])
    return round_vectors(keys @ rotation) @ rotation / keys.shape[-1]
