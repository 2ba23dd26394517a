"""What a decode loop measures of itself as it goes: steps, rows, speed, and when it made its last pass.

Written by the loop's thread without a lock; who reads may be a step behind.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from audiocraft_api.core.engine import BATCH_ROWS, DecodeCounts, ModelStatus

if TYPE_CHECKING:
    from audiocraft_api.engine.model_runner import ModelRunner

# Weight of the newest step in the mean time of a step.
SPEED_SMOOTHING = 0.05


class LoopStats:
    """The numbers of one loop, over all its threads' lives."""

    def __init__(self) -> None:
        self.step_seconds = 0.0  # mean, 0 until measured
        self._steps_by_rows = [0] * (len(BATCH_ROWS) + 1)
        self._num_rows = 0
        self._seconds = 0.0
        self._last_pass: float | None = None  # time.monotonic()

    def begin_pass(self) -> None:
        self._last_pass = time.monotonic()

    def rest(self) -> None:
        """There is nothing to decode any more."""
        self._last_pass = None

    def add(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Take note of steps of the same rows, which took so long together."""
        self._steps_by_rows[bisect_left(BATCH_ROWS, num_rows)] += num_steps
        self._num_rows += num_rows * num_steps
        self._seconds += seconds
        weight = SPEED_SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (seconds / num_steps - self.step_seconds)

    def status(
        self, model: str, *, is_loading: bool = False, model_runner: ModelRunner | None = None, num_slots: int = 0
    ) -> ModelStatus:
        """Tell what is done with a model, in so many slots of a model_runner."""
        last_pass = self._last_pass
        return ModelStatus(
            model,
            is_loading=is_loading,
            stalled_seconds=0.0 if last_pass is None else max(0.0, time.monotonic() - last_pass),
            counts=DecodeCounts(tuple(self._steps_by_rows), self._num_rows, self._seconds),
            kv_cache_bytes=model_runner.slot_bytes * model_runner.num_slots if model_runner else 0,
            kv_cache_used_bytes=model_runner.slot_bytes * num_slots if model_runner else 0,
        )
