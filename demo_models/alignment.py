"""Attention heads, set by hand, with which the melody model finds the current moment in the melody.

The melody is a prefix of the sequence, with one position ("place") for every `HOP` samples. The frequencies of the
position embeddings form a geometric series. `HOP` is chosen such that the number of places in a frame is a power of
the series' ratio. Frequency j + RATE of a frame's position and frequency j of a place then rotate equally fast in time.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo_models.dimensions import DIM, NUM_HEADS, NUM_PLACES, RATE

# Three heads attend to the place at which the lead is, and one and two places later. The fourth head is trained.
SHIFTS = (0, 1, 2)
_FREQUENCIES = tuple(range(0, 33, 4))  # of the prefix; two dimensions of a head each
_HALF = DIM // 2
_CLASSES = range(DIM - 14, DIM - 2)  # dimensions of the pitch classes; the positions' slow sines are small in them
_LOUDNESS = 5.0  # value of a pitch class in its dimension
_SHARPNESS = 7.0  # of queries and keys
_KERNEL = 5.0  # scale of the attention scores in `attention_at_steps`
_LEAD_DELAY = 3  # frames, in MusicGen's delay pattern


def frequency(j: int) -> float:
    """Return a frequency of the position embeddings in radians a position."""
    return float(10_000.0 ** (-j / (_HALF - 1)))


PLACES_PER_FRAME = frequency(RATE)

# The embeddings of codes are zero in these dimensions, so that the heads see positions only.
POSITIONS_ONLY = tuple(sorted({half + j + rate for half in (0, _HALF) for j in _FREQUENCIES for rate in (0, RATE)}))


@functools.cache
def attention_at_steps(tempo: int, num_frames: int) -> NDArray[np.float64]:
    """Return the mean attention of the three heads at each sixteenth note of a tempo, [notes, NUM_PLACES]."""
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
    """Set the weights of a self-attention: input projection [3 * DIM, DIM] and output projection [DIM, DIM].

    Returns a mask [3 * DIM] of the rows of the input projection that training must not change.
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
            # A key is (cos, sin) of w * place, a query (cos, sin) of w * (the lead's place + shift). The query's rows
            # rotate the frame's position embedding by the angle between the two.
            for row, j in enumerate(_FREQUENCIES):
                w, w_frame = frequency(j), frequency(j + RATE)
                angle = w * SHIFTS[head] - w_frame * (NUM_PLACES + _LEAD_DELAY)
                cos, sin = _SHARPNESS * math.cos(angle), _SHARPNESS * math.sin(angle)
                key[2 * row, j] = key[2 * row + 1, _HALF + j] = _SHARPNESS
                query[2 * row, j + RATE], query[2 * row, _HALF + j + RATE] = cos, -sin
                query[2 * row + 1, j + RATE], query[2 * row + 1, _HALF + j + RATE] = sin, cos
    return kept
