"""The model's part of a step: prefills one sequence or decodes many, and appends the sampled tokens to them.

`CpuModelRunner` samples on the CPU over any `Backend`. `cuda.graph_runner.CudaGraphRunner` keeps everything on the
device.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch import Tensor

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.engine.backend import Backend
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.sampling import Sampler
from audiocraft_api.engine.sequence import Sequence

logger = logging.getLogger(__name__)

# Positions of one prefill chunk. Between two chunks, all other sequences advance by a step.
PREFILL_POSITIONS = 128

Failures = dict[Sequence, AudioCraftError]


class ModelRunner(Protocol):
    """Runs the sequences of one model. Not thread-safe."""

    num_slots: int
    max_prefix: int  # the most positions that fit before the first column
    max_context: int  # the most positions that a row's contexts may have together
    pattern: DelayPattern
    is_exact: bool  # whether it produces audiocraft's own tokens
    precision: str  # that the setting resolved to: `exact`, `fp32` (not in audiocraft's order), `fp16`, …
    own_weight_bytes: int  # size of its own copy of all weights; 0 if it reads the model's
    slot_bytes: int  # size of a slot's keys and values

    def start_window(self, seq: Sequence) -> None:
        """Set up the slots for the window that the sequence has just started."""

    def set_contexts(self, seq: Sequence) -> None:
        """Replace the contexts of the sequence's rows between two steps, and keep everything else."""

    def prefill(self, seq: Sequence) -> None:
        """Process one chunk of the sequence's prefix and prompt."""

    def decode(self, seqs: list[Sequence]) -> Failures:
        """Advance each sequence by at least one column; return those that failed, with the error."""

    def release(self, seq: Sequence) -> None:
        """Release what the sequence's slots refer to."""

    def close(self) -> None: ...


class CpuModelRunner:
    """A `ModelRunner` over a `Backend`, with sampling on the CPU."""

    max_context = 1_000_000  # allocated as needed

    def __init__(
        self,
        backend: Backend,
        sampler: Sampler,
        pattern: DelayPattern,
        *,
        max_prefix: int,
        is_exact: bool,
        slot_bytes: int = 0,
    ) -> None:
        self._backend, self._sampler = backend, sampler
        self.slot_bytes = slot_bytes
        self.num_slots = backend.num_slots
        self.own_weight_bytes = backend.own_weight_bytes
        self.max_prefix = max_prefix
        self.pattern = pattern
        self.is_exact = is_exact
        self.precision = "exact" if is_exact else backend.precision

    def start_window(self, seq: Sequence) -> None:
        self.set_contexts(seq)

    def set_contexts(self, seq: Sequence) -> None:
        for slot, row in zip(seq.slots, seq.rows, strict=True):
            if row.parts:
                self._backend.blend(slot, row.parts)
            else:
                self._backend.begin(slot, row.context)

    @torch.inference_mode()
    def prefill(self, seq: Sequence) -> None:
        """Process one chunk; the last one also samples the first column."""
        position = seq.position
        end = min(seq.num_filled, seq.num_fed + max(1, PREFILL_POSITIONS - seq.num_prefix_left))
        tokens = seq.tokens[:, seq.num_fed : end]
        logits = [
            self._backend.prefill(slot, position, None if seq.is_prefix_done else row.prefix, tokens)
            for slot, row in zip(seq.slots, seq.rows, strict=True)
        ]
        seq.is_prefix_done = True
        if end == seq.num_filled:
            (sampled,) = self._sampler.sample([seq], torch.stack(logits))
            if isinstance(sampled, AudioCraftError):
                raise sampled
            seq.append(sampled)
        else:
            seq.num_fed = end

    @torch.inference_mode()
    def decode(self, seqs: list[Sequence]) -> Failures:
        try:
            sampled = self._sampler.sample(seqs, self._logits(seqs))
        except Exception as error:  # noqa: BLE001 - isolates the sequence that caused it
            if len(seqs) > 1:  # nothing has been appended yet, so each can be tried by itself
                logger.warning("A step of %d requests failed (%s); retrying them one by one.", len(seqs), error)
                return {culprit: cause for seq in seqs for culprit, cause in self.decode([seq]).items()}
            return {seqs[0]: as_request_error(error)}
        failures: Failures = {}
        for seq, tokens in zip(seqs, sampled, strict=True):
            if isinstance(tokens, AudioCraftError):
                failures[seq] = tokens
            else:
                seq.append(tokens)
        return failures

    def release(self, seq: Sequence) -> None:
        for slot in seq.slots:
            self._backend.release(slot)

    def close(self) -> None:
        self._backend.close()

    def _logits(self, seqs: list[Sequence]) -> Tensor:
        slots = [slot for seq in seqs for slot in seq.slots]
        positions = [seq.position for seq in seqs for _ in seq.slots]
        tokens = torch.stack([seq.next_column for seq in seqs for _ in seq.slots])  # [R, K]
        return self._backend.decode(slots, tokens, positions)  # [R, K, codebook_size]
