"""Steps that stay on the device: the model, the sampling and the bookkeeping of tokens in one captured CUDA graph.

A graph is captured for each bucket: the batch size, the number of positions attended, and whether any request is
guided. Products always have the rows of the largest batch, used or not. At these sizes most of the time is spent
reading weights, and a product of one shape gives a row the same bits in every batch. Attention runs row by row over the
bucket, and masked positions add exact zeros. Without capture, the same step runs eagerly on any device.

Each running request has a batch index, which stands for two slots: its conditional and its unconditional row.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from collections.abc import Sequence as Parts
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.engine.cuda.device_state import DeviceState
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.failures import not_finite
from audiocraft_api.engine.model_runner import PREFILL_POSITIONS, Failures
from audiocraft_api.engine.sequence import Conditioning, Sequence
from audiocraft_api.engine.slot_pool import SlotPool
from audiocraft_api.engine.torch_backend import embed, plain_linear
from audiocraft_api.engine.transformer import PRECISIONS, TransformerBody
from audiocraft_api.engine.weights import DecoderWeights, position_table

if TYPE_CHECKING:
    from audiocraft_api.engine.backend import Part

# Steps before the host reads the results and requests can join and leave.
STEPS_PER_CALL = 8
# The number of attended positions is rounded up to a multiple of this.
LENGTH_BUCKET = 256
# The most positions of a row's contexts for cross-attention, and the most contexts.
MAX_CONTEXT = 512
MAX_PARTS = 8
WARMUP_STEPS = 2

COND, UNCOND = 0, 1

# The choice of attention kernels applies to the whole process, and a capture must not overlap with the synchronization
# at the start of another one.
_capturing = threading.Lock()


class Bucket(NamedTuple):
    """The properties that a graph is captured for."""

    batch_size: int
    length: int
    is_guided: bool
    has_negative: bool  # whether the unconditional row of any request has a context
    num_parts: int  # the most contexts of a row, rounded up to a power of two


class CudaGraphRunner:
    """A `ModelRunner` that keeps its state on the device."""

    is_exact = False
    max_context = MAX_CONTEXT

    def __init__(
        self,
        weights: DecoderWeights,
        pattern: DelayPattern,
        *,
        max_batch_size: int,
        max_prefix: int,
        num_columns: int,
        slot_bytes: int = 0,
        capture: bool,
    ) -> None:
        """`weights` are on the device and in the type to compute with; `capture` needs CUDA."""
        self.pattern, self.max_prefix = pattern, max_prefix
        self.num_slots = 2 * max_batch_size
        self.own_weight_bytes, self.slot_bytes = 0, slot_bytes
        self._capture = capture
        self._weights, self._body = weights, TransformerBody(weights, plain_linear)
        self._device, self._dtype = weights.heads[0].device, weights.heads[0].dtype
        self.precision = PRECISIONS[self._dtype]
        capacity = -(-(max_prefix + num_columns - 1) // 8) * 8  # attention kernels need masks of a multiple of 8
        table = weights.positional_scale * position_table(capacity, weights.dim, weights.max_period)
        self._positions = table.to(self._device)
        self._state = DeviceState(max_batch_size, weights.num_codebooks, num_columns, self._device)
        self._max_batch_size, self._capacity = max_batch_size, capacity
        # Conditional and unconditional rows are separate halves, each contiguous.
        self._keys, self._values = (self._new_cache((2, max_batch_size), capacity) for _ in range(2))
        self._has_context = weights.layers[0].cross is not None
        # Keys and values for cross-attention, by half. The second is allocated for the first negative description.
        self._contexts = [self._new_context() if self._has_context else (), ()]
        # Where each context of a row begins in these, its length and its weight.
        shape = (MAX_PARTS, 2, max_batch_size)
        self._part_starts, self._part_lengths = (
            torch.zeros(shape, dtype=torch.long, device=self._device) for _ in range(2)
        )
        self._part_weights = torch.zeros(shape, device=self._device)
        self._known_contexts: dict[tuple[int, int], list[Tensor]] = {}  # by index and half
        self._free_indices = SlotPool(max_batch_size)
        self._batch_index: dict[Sequence, int] = {}
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        # PyTorch assigns streams round-robin from a small pool for each priority. The codec's has the other priority,
        # so it is never this one.
        self._side = torch.cuda.Stream(self._device, priority=-1) if capture else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def start_window(self, seq: Sequence) -> None:
        if seq not in self._batch_index:
            self._batch_index[seq] = self._free_indices.allocate()
            # Masked positions are multiplied by zero, which does not remove an infinity left by an overflow.
            for cache in (self._keys, self._values):
                cache[:, :, self._batch_index[seq]].zero_()
            for caches in self._contexts:
                for cache in caches:
                    cache[:, self._batch_index[seq]].zero_()
        index = self._batch_index[seq]
        self._state.load(index, seq)
        self.set_contexts(seq)

    @torch.inference_mode()
    def set_contexts(self, seq: Sequence) -> None:
        index = self._batch_index[seq]
        self._state.load_controls(index, seq)
        self._part_lengths[:, :, index] = 0
        self._part_weights[:, :, index] = 0
        for half, row in enumerate(seq.rows):
            if parts := _parts_of(row):
                self._set_parts(index, half, parts)

    @torch.inference_mode()
    def prefill(self, seq: Sequence) -> None:
        """Process one chunk of all known columns but the last, which is fed by an ordinary step."""
        end = min(seq.num_filled - 1, seq.num_fed + max(0, PREFILL_POSITIONS - seq.num_prefix_left))
        tokens = seq.tokens[:, seq.num_fed : end].T.to(self._device)
        for half, row in enumerate(seq.rows):
            x = embed(self._weights, tokens)
            if not seq.is_prefix_done and row.prefix is not None:
                x = torch.cat([row.prefix.to(x), x])
            self._prefill_row(self._batch_index[seq], half, row, x, seq.position)
        seq.is_prefix_done = True
        seq.num_fed = end

    @torch.inference_mode()
    def decode(self, seqs: list[Sequence]) -> Failures:
        state, indices = self._state, [self._batch_index[seq] for seq in seqs]
        num_steps = min(STEPS_PER_CALL, *(seq.num_columns_left for seq in seqs))
        longest = max(seq.position for seq in seqs) + num_steps
        bucket = Bucket(
            batch_size=min(self._max_batch_size, 1 << max(indices).bit_length()),
            length=min(self._capacity, -(-longest // LENGTH_BUCKET) * LENGTH_BUCKET),
            is_guided=any(len(seq.rows) > 1 for seq in seqs),
            has_negative=any(_parts_of(row) for seq in seqs for row in seq.rows[UNCOND:]),
            num_parts=1 << (max(max(1, len(row.parts)) for seq in seqs for row in seq.rows) - 1).bit_length(),
        )
        step = self._graph_for(bucket)
        active = torch.zeros(self._max_batch_size, dtype=torch.bool)
        active[indices] = True
        state.is_active.copy_(active)
        for _ in range(num_steps):
            step()
        # Reads the results of all steps at once; nothing above waits for the device.
        broken, columns = state.is_broken.tolist(), state.last_columns(bucket.batch_size, num_steps).cpu()
        failures: Failures = {}
        for seq, index in zip(seqs, indices, strict=True):
            if broken[index]:
                failures[seq] = not_finite()
            else:
                seq.append_columns(columns[index])
        return failures

    def release(self, seq: Sequence) -> None:
        index = self._batch_index.pop(seq, None)
        if index is not None:
            for half in (COND, UNCOND):
                self._known_contexts.pop((index, half), None)
            self._free_indices.free(index)

    def close(self) -> None:
        self._graphs.clear()
        del self._body, self._weights, self._keys, self._values, self._contexts, self._state

    def _graph_for(self, bucket: Bucket) -> Callable[[], None]:
        """Return the function that makes one step in a bucket; captures its graph the first time."""
        if not self._capture:
            return lambda: self._step(bucket)
        if bucket not in self._graphs:
            # No request is active during the capture, so its steps change no tokens.
            self._state.is_active.zero_()
            self._graphs[bucket] = self._capture_graph(bucket)
        return self._graphs[bucket].replay

    def _capture_graph(self, bucket: Bucket) -> torch.cuda.CUDAGraph:
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # Other attention kernels split their sums depending on the batch.
        with _capturing, sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            assert self._side is not None
            self._side.wait_stream(main)
            with torch.cuda.stream(self._side):
                for _ in range(WARMUP_STEPS):
                    self._step(bucket)
            main.wait_stream(self._side)
            # The codec's thread keeps using the device during the capture.
            with torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"):
                self._step(bucket)
        return graph

    def _step(self, bucket: Bucket) -> None:
        size, halves = bucket.batch_size, (COND, UNCOND) if bucket.is_guided else (COND,)
        tokens, position = self._state.next_inputs(size)
        position = position.clamp(max=self._capacity - 1)  # of entries whose window is done
        inputs = embed(self._weights, tokens) + self._positions[position]
        x = inputs.new_zeros(2, self._max_batch_size, inputs.shape[1])
        for half in halves:
            x[half, :size] = inputs
        index = torch.arange(size, device=self._device)
        mask = self._mask(bucket.length, position + 1)
        # Attention over no keys would be NaN, so a row without a context attends to one key and its result is dropped.
        parts = range(bucket.num_parts)
        starts, lengths = self._part_starts[:, :, :size], self._part_lengths[:, :, :size]
        weights, part_masks = self._part_weights[:, :, :size], self._part_masks(starts, lengths.clamp(min=1))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = torch.zeros_like(q).view(2, self._max_batch_size, -1)
            q, k, v = (
                self._heads(part).view(2, self._max_batch_size, self._weights.num_heads, -1) for part in (q, k, v)
            )
            for half in halves:
                keys, values = self._keys[layer, half], self._values[layer, half]
                keys[index, :, position] = k[half, :size]
                values[index, :, position] = v[half, :size]
                found = F.scaled_dot_product_attention(
                    q[half, :size].unsqueeze(2),
                    keys[:size, :, : bucket.length],
                    values[:size, :, : bucket.length],
                    attn_mask=mask,
                )
                out[half, :size] = found.flatten(1)
            return out.view(2 * self._max_batch_size, -1)

        def attend_cross(layer: int, q: Tensor) -> Tensor:
            out = torch.zeros_like(q)
            for half in (COND, UNCOND) if bucket.has_negative else (COND,):
                rows = slice(half * self._max_batch_size, half * self._max_batch_size + size)
                keys, values = (cache[layer, :size] for cache in self._contexts[half])
                query = self._heads(q[rows]).unsqueeze(2)
                for part in parts:
                    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=part_masks[part, half])
                    weighted = (weights[part, half].view(-1, 1) * found.flatten(1)).to(q.dtype)
                    out[rows] += weighted.masked_fill(lengths[part, half].view(-1, 1) == 0, 0)
            return out

        x = self._body(x.view(2 * self._max_batch_size, -1), attend, attend_cross if self._has_context else None)
        logits = self._body.logits(x).float().view(2, self._max_batch_size, self._weights.num_codebooks, -1)
        self._state.advance(logits[COND, :size], logits[UNCOND, :size] if bucket.is_guided else None)

    def _prefill_row(self, index: int, half: int, row: Conditioning, x: Tensor, start: int) -> None:
        size = len(x)
        if not size:
            return
        x = x + self._positions[start : start + size]
        mask = torch.ones(size, start + size, dtype=torch.bool, device=self._device).tril(start)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._keys[layer, half, index], self._values[layer, half, index]
            keys[:, start : start + size] = self._heads(k).transpose(0, 1)
            values[:, start : start + size] = self._heads(v).transpose(0, 1)
            past = keys[None, :, : start + size], values[None, :, : start + size]
            query = self._heads(q).transpose(0, 1)[None]
            return F.scaled_dot_product_attention(query, *past, attn_mask=mask)[0].transpose(0, 1).flatten(1)

        def attend_cross(layer: int, q: Tensor) -> Tensor:
            query, start = self._heads(q).transpose(0, 1)[None], 0
            out = torch.zeros_like(q)
            for context, weight in parts:
                end = start + len(context)
                keys, values = (cache[layer, index : index + 1, :, start:end] for cache in self._contexts[half])
                found = F.scaled_dot_product_attention(query, keys, values)[0].transpose(0, 1).flatten(1)
                out, start = out + weight * found, end
            return out

        parts = _parts_of(row)
        self._body(x, attend, attend_cross if parts else None)

    def _set_parts(self, index: int, half: int, parts: Parts[Part]) -> None:
        """Store the weights of a row's contexts, and compute their keys and values unless it has them.

        Raises InvalidRequest.
        """
        contexts = [context for context, _ in parts]
        lengths = torch.tensor([len(context) for context in contexts])
        if int(lengths.sum()) > MAX_CONTEXT or len(parts) > MAX_PARTS:
            raise InvalidRequest("The prompt is too long for this model. Use a shorter one.")
        if not self._contexts[half]:
            self._contexts[half] = self._new_context()
        starts = lengths.cumsum(0) - lengths
        self._part_starts[: len(parts), half, index] = starts.to(self._device)
        self._part_lengths[: len(parts), half, index] = lengths.to(self._device)
        self._part_weights[: len(parts), half, index] = torch.tensor([weight for _, weight in parts]).to(self._device)
        known = self._known_contexts.get((index, half), [])
        if len(known) == len(contexts) and all(map(operator.is_, known, contexts)):
            return
        self._known_contexts[index, half] = contexts
        for context, start in zip(contexts, starts.tolist(), strict=True):
            self._write_context(index, half, start, context.to(self._device, self._dtype))

    def _write_context(self, index: int, half: int, start: int, context: Tensor) -> None:
        """Compute the cross-attention keys and values of a context [L, D], and store them from position `start` on."""
        end = start + len(context)
        for layer_index, layer in enumerate(self._weights.layers):
            assert layer.cross is not None
            for cache, weight in zip(self._contexts[half], (layer.cross.key, layer.cross.value), strict=True):
                cache[layer_index, index, :, start:end] = self._heads(F.linear(context, weight)).transpose(0, 1)

    def _part_masks(self, starts: Tensor, lengths: Tensor) -> Tensor:
        """Return the masks [MAX_PARTS, 2, size, 1, 1, MAX_CONTEXT] of the positions of each context."""
        positions = torch.arange(MAX_CONTEXT, device=self._device)
        first = starts[..., None, None, None]
        return (positions >= first) & (positions < first + lengths[..., None, None, None])

    def _mask(self, length: int, lengths: Tensor) -> Tensor:
        """Return the mask [size, 1, 1, length] of the positions that each row attends to."""
        return (torch.arange(length, device=self._device) < lengths.view(-1, 1))[:, None, None]

    def _heads(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, H, d]"""
        return x.reshape(*x.shape[:-1], self._weights.num_heads, -1)

    def _new_context(self) -> tuple[Tensor, ...]:
        return tuple(self._new_cache((self._max_batch_size,), MAX_CONTEXT) for _ in range(2))

    def _new_cache(self, rows: tuple[int, ...], length: int) -> Tensor:
        weights = self._weights
        shape = (len(weights.layers), *rows, weights.num_heads, length, weights.dim // weights.num_heads)
        # Zeros, because masked positions are multiplied by zero, and uninitialized memory may be infinite.
        return torch.zeros(shape, dtype=self._dtype, device=self._device)


def _parts_of(row: Conditioning) -> Parts[Part]:
    """Return what a row attends to; nothing for a row without a text."""
    return row.parts or (() if row.context is None else ((row.context, 1.0),))
