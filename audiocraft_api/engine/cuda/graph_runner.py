"""Steps that never leave the device: model, sampling and the sequence's bookkeeping in one captured CUDA graph.

A graph is captured for each bucket: how many places are stepped, how many positions are attended, and whether any
request is guided. Products always have all places' rows, filled or not: at these sizes the time goes into reading weights,
and a product of one shape gives a row the same bits in every batch. Attention goes row by row over the bucket, and
masked positions add exact zeros. Without capture the same step runs eagerly, on any device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.engine.cuda.device_state import DeviceState
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.failures import not_finite
from audiocraft_api.engine.model_runner import PREFILL_POSITIONS, Failures
from audiocraft_api.engine.sequence import Row, RunningRequest
from audiocraft_api.engine.slot_pool import SlotPool
from audiocraft_api.engine.torch_backend import embed, plain_linear
from audiocraft_api.engine.transformer import PRECISIONS, TransformerBody
from audiocraft_api.engine.weights import DecoderWeights, position_table

# Steps between two looks at the results, at which requests join and leave.
STEPS_PER_CALL = 8
# Positions attended are rounded up to this.
LENGTH_BUCKET = 256
# Positions of cross-attention that there is room for.
MAX_CONTEXT = 512
WARMUP_STEPS = 2

COND, NULL = 0, 1

# The choice of attention is the process's, and a capture must not meet the synchronisation that begins another one.
_capturing = threading.Lock()


class Bucket(NamedTuple):
    """What a graph is captured for."""

    num_places: int
    length: int
    is_guided: bool


class CudaGraphRunner:
    """A `ModelRunner` whose state lies on the device."""

    is_exact = False

    def __init__(
        self,
        weights: DecoderWeights,
        pattern: DelayPattern,
        *,
        num_places: int,
        max_prefix: int,
        num_columns: int,
        slot_bytes: int = 0,
        capture: bool,
    ) -> None:
        """`weights` lie on the device in the type to compute in; `capture` needs CUDA."""
        self.pattern, self.max_prefix = pattern, max_prefix
        self.num_slots = 2 * num_places
        self.own_weight_bytes, self.slot_bytes = 0, slot_bytes
        self._capture = capture
        self._weights, self._body = weights, TransformerBody(weights, plain_linear)
        self._device, self._dtype = weights.heads[0].device, weights.heads[0].dtype
        self.precision = PRECISIONS[self._dtype]
        capacity = -(-(max_prefix + num_columns - 1) // 8) * 8  # attention wants masks of a multiple of 8
        table = weights.positional_scale * position_table(capacity, weights.dim, weights.max_period)
        self._positions = table.to(self._device)
        self._state = DeviceState(num_places, weights.num_codebooks, num_columns, self._device)
        self._num_places, self._capacity = num_places, capacity
        # Conditional rows and null rows apart: only the former have a context, and each half is one run of memory.
        self._keys, self._values = self._cache((2, num_places), capacity), self._cache((2, num_places), capacity)
        has_context = weights.layers[0].cross is not None
        room = MAX_CONTEXT if has_context else 0
        self._context = self._cache((num_places,), room), self._cache((num_places,), room)
        self._has_context = has_context
        self._context_length = torch.zeros(num_places, dtype=torch.long, device=self._device)
        self._places = SlotPool(num_places)
        self._place_of: dict[RunningRequest, int] = {}
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        # StreamSlots are given out in turn from a few for each priority; the codec's, of the other one, is never this one.
        self._side = torch.cuda.Stream(self._device, priority=-1) if capture else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def begin(self, run: RunningRequest) -> None:
        is_new = run not in self._place_of
        if is_new:
            self._place_of[run] = self._places.take()
            # What is masked is multiplied by zero, which does not undo what an overflow has left.
            for cache in (self._keys, self._values):
                cache[:, :, self._place_of[run]].zero_()
            for cache in self._context:
                cache[:, self._place_of[run]].zero_()
        place = self._place_of[run]
        self._state.load(place, run, is_new)
        context = run.rows[COND].context
        self._context_length[place] = 0 if context is None else len(context)
        if context is None:
            return
        if len(context) > MAX_CONTEXT:
            raise InvalidRequest("The prompt is too long for this model; shorten it.")
        context = context.to(self._device, self._dtype)
        for index, layer in enumerate(self._weights.layers):
            assert layer.cross is not None
            for cache, weight in zip(self._context, (layer.cross.key, layer.cross.value), strict=True):
                cache[index, place, :, : len(context)] = self._heads(F.linear(context, weight)).transpose(0, 1)

    @torch.inference_mode()
    def prefill(self, run: RunningRequest) -> None:
        """Run all but the last given column; that one is an ordinary step."""
        end = min(run.num_filled - 1, run.num_fed + max(0, PREFILL_POSITIONS - run.num_prefix_left))
        tokens = run.sequence[:, run.num_fed : end].T.to(self._device)
        for half, row in enumerate(run.rows):
            x = embed(self._weights, tokens)
            if not run.is_prefix_run and row.prefix is not None:
                x = torch.cat([row.prefix.to(x), x])
            self._prefill_row(self._place_of[run], half, row, x, run.position)
        run.is_prefix_run = True
        run.num_fed = end

    @torch.inference_mode()
    def decode(self, runs: Sequence[RunningRequest]) -> Failures:
        state, places = self._state, [self._place_of[run] for run in runs]
        num_steps = min(STEPS_PER_CALL, *(run.num_open for run in runs))
        longest = max(run.position for run in runs) + num_steps
        bucket = Bucket(
            num_places=min(self._num_places, 1 << (max(places)).bit_length()),
            length=min(self._capacity, -(-longest // LENGTH_BUCKET) * LENGTH_BUCKET),
            is_guided=any(len(run.rows) > 1 for run in runs),
        )
        step = self._prepared(bucket)
        active = torch.zeros(self._num_places, dtype=torch.bool)
        active[places] = True
        state.is_active.copy_(active)
        for _ in range(num_steps):
            step()
        # One look at the results for all steps; nothing above waits for the device.
        broken, columns = state.is_broken.tolist(), state.last_columns(bucket.num_places, num_steps).cpu()
        failures: Failures = {}
        for run, place in zip(runs, places, strict=True):
            if broken[place]:
                failures[run] = not_finite()
            else:
                run.fill(columns[place])
        return failures

    def release(self, run: RunningRequest) -> None:
        place = self._place_of.pop(run, None)
        if place is not None:
            self._places.give_back(place)

    def close(self) -> None:
        self._graphs.clear()
        del self._body, self._weights, self._keys, self._values, self._context, self._state

    def _prepared(self, bucket: Bucket) -> Callable[[], None]:
        """Return what makes one step in a bucket, capturing it the first time."""
        if not self._capture:
            return lambda: self._step(bucket)
        if bucket not in self._graphs:
            # No request is active meanwhile: what is computed goes nowhere.
            self._state.is_active.zero_()
            self._graphs[bucket] = self._captured(bucket)
        return self._graphs[bucket].replay

    def _captured(self, bucket: Bucket) -> torch.cuda.CUDAGraph:
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # The other kinds of attention choose by the batch how to split the sums.
        with _capturing, sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            assert self._side is not None
            self._side.wait_stream(main)
            with torch.cuda.stream(self._side):
                for _ in range(WARMUP_STEPS):
                    self._step(bucket)
            main.wait_stream(self._side)
            # The codec's thread goes on using the device meanwhile.
            with torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"):
                self._step(bucket)
        return graph

    def _step(self, bucket: Bucket) -> None:
        size, halves = bucket.num_places, (COND, NULL) if bucket.is_guided else (COND,)
        tokens, position = self._state.next_inputs(size)
        position = position.clamp(max=self._capacity - 1)  # of places whose window is done
        inputs = embed(self._weights, tokens) + self._positions[position]
        x = inputs.new_zeros(2, self._num_places, inputs.shape[1])
        for half in halves:
            x[half, :size] = inputs
        place = torch.arange(size, device=self._device)
        mask = self._mask(bucket.length, position + 1)
        # A row of zeros keys would give no number; it attends to one, and its result is dropped.
        context_length = self._context_length[:size]
        context_mask = self._mask(MAX_CONTEXT, context_length.clamp(min=1))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = torch.zeros_like(q).view(2, self._num_places, -1)
            q, k, v = (self._heads(part).view(2, self._num_places, self._weights.num_heads, -1) for part in (q, k, v))
            for half in halves:
                keys, values = self._keys[layer, half], self._values[layer, half]
                keys[place, :, position] = k[half, :size]
                values[place, :, position] = v[half, :size]
                found = F.scaled_dot_product_attention(
                    q[half, :size].unsqueeze(2),
                    keys[:size, :, : bucket.length],
                    values[:size, :, : bucket.length],
                    attn_mask=mask,
                )
                out[half, :size] = found.flatten(1)
            return out.view(2 * self._num_places, -1)

        def attend_cross(layer: int, q: Tensor) -> Tensor:
            out = torch.zeros_like(q)
            keys, values = (cache[layer, :size] for cache in self._context)
            query = self._heads(q[:size]).unsqueeze(2)
            found = F.scaled_dot_product_attention(query, keys, values, attn_mask=context_mask).flatten(1)
            out[:size] = found.masked_fill(context_length.view(-1, 1) == 0, 0)
            return out

        x = self._body(x.view(2 * self._num_places, -1), attend, attend_cross if self._has_context else None)
        logits = self._body.logits(x).float().view(2, self._num_places, self._weights.num_codebooks, -1)
        self._state.advance(logits[COND, :size], logits[NULL, :size] if bucket.is_guided else None)

    def _prefill_row(self, place: int, half: int, row: Row, x: Tensor, start: int) -> None:
        size = len(x)
        if not size:
            return
        x = x + self._positions[start : start + size]
        mask = torch.ones(size, start + size, dtype=torch.bool, device=self._device).tril(start)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._keys[layer, half, place], self._values[layer, half, place]
            keys[:, start : start + size] = self._heads(k).transpose(0, 1)
            values[:, start : start + size] = self._heads(v).transpose(0, 1)
            past = keys[None, :, : start + size], values[None, :, : start + size]
            query = self._heads(q).transpose(0, 1)[None]
            return F.scaled_dot_product_attention(query, *past, attn_mask=mask)[0].transpose(0, 1).flatten(1)

        def attend_cross(layer: int, q: Tensor) -> Tensor:
            assert row.context is not None
            keys, values = (cache[layer, place : place + 1, :, : len(row.context)] for cache in self._context)
            query = self._heads(q).transpose(0, 1)[None]
            return F.scaled_dot_product_attention(query, keys, values)[0].transpose(0, 1).flatten(1)

        self._body(x, attend, attend_cross if row.context is not None else None)

    def _mask(self, length: int, lengths: Tensor) -> Tensor:
        """Say which of the first positions each row attends to, [size, 1, 1, length]."""
        return (torch.arange(length, device=self._device) < lengths.view(-1, 1))[:, None, None]

    def _heads(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, H, d]"""
        return x.reshape(*x.shape[:-1], self._weights.num_heads, -1)

    def _cache(self, places: tuple[int, ...], length: int) -> Tensor:
        weights = self._weights
        shape = (len(weights.layers), *places, weights.num_heads, length, weights.dim // weights.num_heads)
        # Zeros: what is masked is multiplied by zero, and garbage may be infinite.
        return torch.zeros(shape, dtype=self._dtype, device=self._device)
