"""The PyTorch backend: eager operations on any device.

It is the reference that the native backend and the captured step are tested against, and it runs where neither can. A
row's bits must not depend on the batch, but the bits of a matrix product may depend on its number of rows. So all
products of a decode step have `ROW_BLOCK` rows, padded with zeros. One guided request has
two rows, and audiocraft multiplies these two together as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from audiocraft_api.engine.kv_cache import StaticKVCache
from audiocraft_api.engine.transformer import PRECISIONS, Linear, TransformerBody
from audiocraft_api.engine.weights import DecoderWeights, position_table

if TYPE_CHECKING:
    from audiocraft_api.engine.backend import Part

ROW_BLOCK = 2


def plain_linear(weight: Tensor) -> Linear:
    """Return a linear layer over a weight as it is stored."""
    return lambda x: F.linear(x, weight)


def packed_linear(weight: Tensor) -> Linear:
    """Return a linear layer over a copy of the weight in oneDNN's layout: several times faster on few rows."""
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), ROW_BLOCK)
    return lambda x: ops._linear_pointwise(x, packed, None, "none", [], "")


def embed(weights: DecoderWeights, tokens: Tensor) -> Tensor:
    """Sum the embeddings of all codebooks, in order: tokens [N, K] -> float32 [N, D]."""
    x = F.embedding(tokens[:, 0], weights.embeddings[0]).float()
    for codebook, table in enumerate(weights.embeddings[1:], start=1):
        x = x + F.embedding(tokens[:, codebook], table)
    return x


class _Part(NamedTuple):
    """A context that a row attends to."""

    context: Tensor  # [L, D]
    weight: float
    pairs: list[tuple[Tensor, Tensor]]  # each layer's keys and values [1, H, L, d]


class TorchBackend:
    """A `Backend` of PyTorch operations, in float32 or with half precision in products and attention."""

    def __init__(
        self,
        weights: DecoderWeights,
        *,
        num_slots: int,
        capacity: int,
        make_linear: Callable[[Tensor], Linear] = plain_linear,
    ) -> None:
        """The device and the type of `weights` are those that the backend computes with."""
        self.num_slots, self.capacity = num_slots, capacity
        self.own_weight_bytes = 0
        first = weights.out_norm_weight
        self._device, self._dtype = first.device, first.dtype
        self.precision = PRECISIONS[self._dtype]
        self._weights = weights
        self._body = TransformerBody(weights, make_linear)
        self._heads, self._head_dim = weights.num_heads, weights.dim // weights.num_heads
        table = weights.positional_scale * position_table(capacity, weights.dim, weights.max_period)
        self._positions = table.to(self._device)
        self._cache = StaticKVCache(
            len(weights.layers),
            num_slots,
            self._heads,
            capacity,
            self._head_dim,
            dtype=self._dtype,
            device=self._device,
        )
        self._parts: list[list[_Part]] = [[] for _ in range(num_slots)]  # by slot; empty: an unconditional row

    @torch.inference_mode()
    def begin(self, slot: int, context: Tensor | None) -> None:
        self.blend(slot, [] if context is None else [(context, 1.0)])

    @torch.inference_mode()
    def blend(self, slot: int, parts: Sequence[Part]) -> None:
        known = {id(part.context): part.pairs for part in self._parts[slot]}
        self._parts[slot] = [
            _Part(context, weight, known.get(id(context)) or self._pairs_of(context)) for context, weight in parts
        ]

    @torch.inference_mode()
    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        x = embed(self._weights, tokens.T.to(self._device))
        if prefix is not None:
            x = torch.cat([prefix.to(x), x])
        size = len(x)
        x = x + self._positions[position : position + size]
        # Each position attends to all earlier ones, including those of earlier chunks.
        mask = torch.ones(size, position + size, dtype=torch.bool, device=self._device).tril(position)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._cache.write(layer, slot, position, self._split(k), self._split(v))
            return self._join(F.scaled_dot_product_attention(self._split(q).unsqueeze(0), keys, values, attn_mask=mask))

        parts = self._parts[slot]

        def attend_cross(layer: int, q: Tensor) -> Tensor:
            return self._attend_parts(layer, q, parts)

        x = self._body(x, attend, attend_cross if parts else None)
        # The head's product needs the same number of rows too: packed weights are laid out for it.
        last = torch.cat([x[-1:], x.new_zeros(ROW_BLOCK - 1, x.shape[1])])
        return self._body.logits(last)[0].float().cpu()

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        blocks = [
            self._decode_block(slots[i : i + ROW_BLOCK], tokens[i : i + ROW_BLOCK], positions[i : i + ROW_BLOCK])
            for i in range(0, len(slots), ROW_BLOCK)
        ]
        return torch.cat(blocks).float().cpu()

    def release(self, slot: int) -> None:
        self._parts[slot] = []

    def close(self) -> None:
        self._parts.clear()
        del self._body, self._cache, self._weights

    def _decode_block(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        num_rows = len(slots)
        rows = embed(self._weights, tokens.to(self._device)) + self._positions[list(positions)]
        x = F.pad(rows, (0, 0, 0, ROW_BLOCK - num_rows))
        parts = [self._parts[slot] for slot in slots]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = torch.zeros_like(q)
            for row in range(num_rows):
                key, value = self._split(k[row : row + 1]), self._split(v[row : row + 1])
                past = self._cache.write(layer, slots[row], positions[row], key, value)
                out[row] = self._join(F.scaled_dot_product_attention(self._split(q[row : row + 1])[None], *past))
            return out

        def attend_cross(layer: int, q: Tensor) -> Tensor:
            out = torch.zeros_like(q)
            for row, own in enumerate(parts):
                if own:
                    out[row] = self._attend_parts(layer, q[row : row + 1], own)
            return out

        x = self._body(x, attend, attend_cross if any(parts) else None)
        return self._body.logits(x)[:num_rows]

    def _pairs_of(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values [1, H, L, d] of a context [L, D]."""
        context = context.to(self._device, self._dtype)
        pairs = []
        for layer in self._weights.layers:
            assert layer.cross is not None
            k, v = F.linear(context, layer.cross.key), F.linear(context, layer.cross.value)
            pairs.append((self._split(k).unsqueeze(0), self._split(v).unsqueeze(0)))
        return pairs

    def _attend_parts(self, layer: int, q: Tensor, parts: list[_Part]) -> Tensor:
        """Return the weighted sum of the outputs [S, D] of queries [S, D] that attend to each part."""
        query = self._split(q)[None]
        first, *others = (
            part.weight * self._join(F.scaled_dot_product_attention(query, *part.pairs[layer])) for part in parts
        )
        return sum(others, first)

    def _split(self, x: Tensor) -> Tensor:
        """[S, D] -> [H, S, d]"""
        return x.view(len(x), self._heads, self._head_dim).transpose(0, 1)

    def _join(self, x: Tensor) -> Tensor:
        """[1, H, S, d] -> [S, D]"""
        return x[0].transpose(0, 1).reshape(x.shape[2], -1)
