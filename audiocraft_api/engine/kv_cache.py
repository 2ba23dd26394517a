"""Keys and values of all slots in one preallocated tensor.

A slot has room for one row's keys and values. A new row overwrites its slot from position 0 on; nothing is cleared. So
whatever lies beyond a row's length belongs to an earlier row and must never be attended.
"""

from __future__ import annotations

import torch
from torch import Tensor


class StaticKVCache:
    """Self-attention keys and values, each [layers, slots, H, capacity, d]."""

    def __init__(
        self,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, num_slots, num_heads, capacity, head_dim)
        # On a CPU, pages that are never written occupy no memory, so short requests need less.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def write(self, layer: int, slot: int, position: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v [H, S, d] from `position` on; return all the row's keys and values, [1, H, length, d] each."""
        end = position + k.shape[1]
        self.keys[layer, slot, :, position:end] = k
        self.values[layer, slot, :, position:end] = v
        return self.keys[layer, slot : slot + 1, :, :end], self.values[layer, slot : slot + 1, :, :end]
