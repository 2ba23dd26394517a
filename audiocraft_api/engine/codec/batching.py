"""When a request's finished frames go to the codec. Which frames make a block is the codec's own affair, always the same."""

from __future__ import annotations

from audiocraft_api.engine.codec.decoder import BLOCK_FRAMES
from audiocraft_api.engine.codec.lstm import NUM_ROWS

FEW_FRAMES = 4  # spare the codec's thread a wake-up for every frame
EARLY_FRAMES = sum(BLOCK_FRAMES[:-1])  # of the short blocks, so that sound begins early
SHARED_STEPS = BLOCK_FRAMES[-1]


class CodecBatching:
    """Frames go as they come; on a CPU, where many requests run, those of all together, once in a block.

    There the codec's recurrent layer takes as long for one request as for `NUM_ROWS`.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._num_steps = 0  # since all were due
        self._is_due = True

    def begin(self, num_running: int, num_steps: int) -> None:
        """Take note of the steps that so many requests have just made."""
        self._num_steps += num_steps
        self._is_due = not self._is_shared or num_running < NUM_ROWS or self._num_steps >= SHARED_STEPS
        if self._is_due:
            self._num_steps = 0

    def min_frames(self, num_delivered: int) -> int:
        """Return the frames that a request must have for them to go now, by how many of it went before."""
        return FEW_FRAMES if self._is_due or num_delivered < EARLY_FRAMES else 2 * SHARED_STEPS
