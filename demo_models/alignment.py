"""How the melody model finds what the melody plays at a moment: attention heads that are set by hand.

The model sees the melody as a prefix of pitch classes, one for each `HOP` samples. A head must look from a frame's
place in the sequence at the same moment's place in the prefix, and time runs at different rates there. The frequencies
of the position embeddings are a geometric series. `HOP` is chosen such that the ratio of the rates is a power of the
series: frequency j + RATE of a frame's position turns exactly as fast as frequency j of the prefix.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo_models.dimensions import DIM, NUM_HEADS, NUM_PLACES, RATE

# Heads look at the lead's moment, and one and two places later. The last head begins by looking at all places.
SHIFTS = (0, 1, 2)
_FREQUENCIES = tuple(range(0, 33, 4))  # of the prefix; two dimensions of a head each
_HALF = DIM // 2
_CLASSES = range(DIM - 14, DIM - 2)  # dimensions of the pitch classes; the positions' slow sines are small in them
_LOUDNESS = 5.0  # of a pitch class in its dimension
_SHARPNESS = 7.0  # of queries and keys
_KERNEL = 5.0  # the sharpness with which `looks` looks
_LEAD_DELAY = 3  # frames, in MusicGen's delay pattern


def frequency(j: int) -> float:
    """Return a frequency of the position embeddings in radians a position."""
    return float(10_000.0 ** (-j / (_HALF - 1)))


PLACES_PER_FRAME = frequency(RATE)

# Dimensions in which only positions may be seen, so the codes' embeddings are zero there.
POSITIONS_ONLY = tuple(sorted({half + j + rate for half in (0, _HALF) for j in _FREQUENCIES for rate in (0, RATE)}))


@functools.cache
def looks(tempo: int, num_frames: int) -> NDArray[np.float64]:
    """Return how much the heads look at each place, [sixteenth notes, NUM_PLACES], for a lead in a tempo."""
    frames = np.arange(0, num_frames, tempo)
    distances = frames[:, None, None] * PLACES_PER_FRAME + np.array(SHIFTS)[:, None] - np.arange(NUM_PLACES)
    scores = _KERNEL * sum(np.cos(distances * frequency(j)) for j in _FREQUENCIES)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mean: NDArray[np.float64] = (weights / weights.sum(-1, keepdims=True)).mean(1)
    return mean


@torch.no_grad()
def set_embedding(weight: Tensor) -> None:
    """Set the weight [DIM, 12] that embeds pitch classes."""
    weight.zero_()
    for pitch_class, dimension in enumerate(_CLASSES):
        weight[dimension, pitch_class] = _LOUDNESS


@torch.no_grad()
def set_heads(attend: Tensor, out: Tensor) -> Tensor:
    """Set the weights of a self-attention, [3 * DIM, DIM] and [DIM, DIM].

    Returns which rows [3 * DIM] of the first training must leave as they are.
    """
    size, kept = DIM // NUM_HEADS, torch.zeros(3 * DIM, dtype=torch.bool)
    kept[: len(SHIFTS) * size] = kept[DIM : DIM + len(SHIFTS) * size] = True
    for head in range(NUM_HEADS):
        query, key, value = (attend[at * DIM + head * size : at * DIM + (head + 1) * size] for at in range(3))
        value.zero_()
        for row, dimension in enumerate(_CLASSES):
            value[row, dimension] = 1.0
        out[:, head * size : (head + 1) * size].normal_(std=1 / math.sqrt(DIM))
        if head < len(SHIFTS):
            query.zero_()
            key.zero_()
            # A key is cos and sin of w * place, and a query cos and sin of w * (the moment's place + shift). A rotation
            # makes the latter of what the frame's position has at the frequency that turns as fast. The product of the
            # two peaks where both are equal.
            for row, j in enumerate(_FREQUENCIES):
                w, w_frame = frequency(j), frequency(j + RATE)
                angle = w * SHIFTS[head] - w_frame * (NUM_PLACES + _LEAD_DELAY)
                cos, sin = _SHARPNESS * math.cos(angle), _SHARPNESS * math.sin(angle)
                key[2 * row, j] = key[2 * row + 1, _HALF + j] = _SHARPNESS
                query[2 * row, j + RATE], query[2 * row, _HALF + j + RATE] = cos, -sin
                query[2 * row + 1, j + RATE], query[2 * row + 1, _HALF + j + RATE] = sin, cos
    return kept
