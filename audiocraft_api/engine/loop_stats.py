"""What a decode loop measures of itself: steps, rows, speed, and the time of its last pass.

The loop's thread writes without a lock; a reader may see numbers that are one step old.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from audiocraft_api.core.engine import BATCH_ROWS, DecodeCounts, ModelStatus

if TYPE_CHECKING:
    from audiocraft_api.engine.model_runner import ModelRunner

SPEED_SMOOTHING = 0.05  # weight of the newest step in the mean duration of a step


class LoopStats:
    """The measurements of one model's loop. They outlive its thread, which ends when there are no requests."""

    def __init__(self) -> None:
        self.step_seconds = 0.0  # mean; 0 until measured
        self._steps_by_rows = [0] * (len(BATCH_ROWS) + 1)
        self._num_rows = 0
        self._seconds = 0.0
        self._last_pass: float | None = None  # time.monotonic(); None while idle

    def begin_pass(self) -> None:
        self._last_pass = time.monotonic()

    def idle(self) -> None:
        """Record that nothing is left to decode, so that the time until the next pass does not count as a stall."""
        self._last_pass = None

    def add_steps(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Record steps of the same rows, which took `seconds` together."""
        self._steps_by_rows[bisect_left(BATCH_ROWS, num_rows)] += num_steps
        self._num_rows += num_rows * num_steps
        self._seconds += seconds
        weight = SPEED_SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (seconds / num_steps - self.step_seconds)

    def status(
        self, model: str, *, is_loading: bool = False, model_runner: ModelRunner | None = None, num_slots: int = 0
    ) -> ModelStatus:
        """Return the state of a model whose running requests use `num_slots` slots of `model_runner`."""
        last_pass = self._last_pass
        return ModelStatus(
            model,
            is_loading=is_loading,
            stalled_seconds=0.0 if last_pass is None else max(0.0, time.monotonic() - last_pass),
            counts=DecodeCounts(tuple(self._steps_by_rows), self._num_rows, self._seconds),
            kv_cache_bytes=model_runner.slot_bytes * model_runner.num_slots if model_runner else 0,
            kv_cache_used_bytes=model_runner.slot_bytes * num_slots if model_runner else 0,
        )
