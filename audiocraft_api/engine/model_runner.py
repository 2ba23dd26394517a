"""The model's part of a step: prefill one request, decode many. The sampled tokens are written into their sequences.

`CpuModelRunner` samples on the CPU over any `Backend`. The CUDA model_runner keeps all of it on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.engine.backend import Backend
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.samplers import Sampler
from audiocraft_api.engine.sequence import RunningRequest

logger = logging.getLogger(__name__)

# Positions of one prefill piece: between two pieces all other requests make a step.
PREFILL_POSITIONS = 128

Failures = dict[RunningRequest, AudioCraftError]


class ModelRunner(Protocol):
    """Runs requests on one model. One thread at a time."""

    num_slots: int
    max_prefix: int  # positions before the first column that fit
    pattern: DelayPattern
    is_exact: bool  # gives audiocraft's own tokens
    precision: str  # what the setting `precision` came to: `exact`, `fp32` out of audiocraft's order, `fp16`, …
    own_weight_bytes: int  # of a copy of all weights; 0 where the model's own are read
    slot_bytes: int  # of keys and values that are kept for a slot

    def begin(self, run: RunningRequest) -> None:
        """Set up the slots for the window that the request has just begun."""

    def prefill(self, run: RunningRequest) -> None:
        """Run one piece of the request's prefix and prompt; the last piece writes the first tokens."""

    def decode(self, runs: Sequence[RunningRequest]) -> Failures:
        """Advance every request by one column; return those that could not be, with the reason."""

    def release(self, run: RunningRequest) -> None:
        """Let the request's slots go."""

    def close(self) -> None: ...


class CpuModelRunner:
    """Steps over a `Backend`, with sampling on the CPU."""

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

    def begin(self, run: RunningRequest) -> None:
        for slot, row in zip(run.slots, run.rows, strict=True):
            self._backend.begin(slot, row.context)

    @torch.inference_mode()
    def prefill(self, run: RunningRequest) -> None:
        position = run.position
        end = min(run.num_filled, run.num_fed + max(1, PREFILL_POSITIONS - run.num_prefix_left))
        tokens = run.sequence[:, run.num_fed : end]
        logits = [
            self._backend.prefill(slot, position, None if run.is_prefix_run else row.prefix, tokens)
            for slot, row in zip(run.slots, run.rows, strict=True)
        ]
        run.is_prefix_run = True
        if end == run.num_filled:
            (drawn,) = self._sampler.sample([run], torch.stack(logits))
            if isinstance(drawn, AudioCraftError):
                raise drawn
            run.write(drawn)
        else:
            run.num_fed = end

    @torch.inference_mode()
    def decode(self, runs: Sequence[RunningRequest]) -> Failures:
        try:
            drawn = self._sampler.sample(runs, self._logits(runs))
        except Exception as error:  # noqa: BLE001
            if len(runs) > 1:  # whose fault it is shows when each goes alone; nothing has been written yet
                logger.warning("A step of %d requests failed (%s); trying them one by one.", len(runs), error)
                return {culprit: cause for run in runs for culprit, cause in self.decode([run]).items()}
            return {runs[0]: as_request_error(error)}
        failures: Failures = {}
        for run, tokens in zip(runs, drawn, strict=True):
            if isinstance(tokens, AudioCraftError):
                failures[run] = tokens
            else:
                run.write(tokens)
        return failures

    def release(self, run: RunningRequest) -> None:
        for slot in run.slots:
            self._backend.release(slot)

    def close(self) -> None:
        self._backend.close()

    def _logits(self, runs: Sequence[RunningRequest]) -> Tensor:
        slots = [slot for run in runs for slot in run.slots]
        positions = [run.position for run in runs for _ in run.slots]
        tokens = torch.stack([run.next_column for run in runs for _ in run.slots])  # [R, K]
        return self._backend.decode(slots, tokens, positions)  # [R, K, codebook_size]
