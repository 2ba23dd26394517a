"""Decides when a request's complete frames are sent to the codec. The codec alone decides how frames form blocks."""

from __future__ import annotations

from audiocraft_api.engine.codec.decoder import BLOCK_FRAMES

FEW_FRAMES = 4  # so that not every frame wakes the codec's thread
EARLY_FRAMES = sum(BLOCK_FRAMES[:-1])  # of the short first blocks, so that audio starts early
SHARED_STEPS = BLOCK_FRAMES[-1]
MANY_REQUESTS = 4  # whose frames are sent together


class CodecBatching:
    """Sends frames as they become complete or, on a CPU with many requests, those of all requests once per block.

    On a CPU, a step of the codec's recurrent layer takes little longer for four requests than for one.
    """

    def __init__(self, *, is_shared: bool) -> None:
        """`is_shared`: decoding and the codec share the processor, so batching saves time."""
        self._is_shared = is_shared
        self._num_steps = 0  # since frames of all requests were due
        self._is_due = True

    def count_steps(self, num_running: int, num_steps: int) -> None:
        """Record that `num_running` requests have made `num_steps` steps."""
        self._num_steps += num_steps
        self._is_due = not self._is_shared or num_running < MANY_REQUESTS or self._num_steps >= SHARED_STEPS
        if self._is_due:
            self._num_steps = 0

    def min_frames(self, num_delivered: int) -> int:
        """Return how many new frames a request needs before they are sent; `num_delivered` were sent earlier."""
        return FEW_FRAMES if self._is_due or num_delivered < EARLY_FRAMES else 2 * SHARED_STEPS
