"""Random numbers from a counter, made where they are used: no state, no order, so a captured graph can draw them.

A request's noise depends on its seed, the number of its draw, codebook and rank alone; never on the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as signed numbers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def exponential_noise(seeds: Tensor, draws: Tensor, num_codebooks: int, codebook_size: int) -> Tensor:
    """Return Exp(1) noise float32 [N, K, codebook_size] for seeds and numbers of draws int64 [N]; strictly positive."""
    stream = _mixed(seeds + _GAMMA * (draws + 1)).view(-1, 1, 1)
    index = torch.arange(num_codebooks * codebook_size, device=seeds.device).view(1, num_codebooks, codebook_size)
    bits = _shifted(_mixed(stream + _GAMMA * (index + 1)), 40)  # the upper 24, exact in float32
    return -torch.log((bits.float() + 0.5) * 2.0**-24)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """Shift right as unsigned numbers do."""
    return (x >> count) & ((1 << (64 - count)) - 1)
