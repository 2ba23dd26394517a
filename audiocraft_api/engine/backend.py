"""What a backend is: the part that multiplies. It turns rows of tokens into logits and keeps their keys and values.

A backend owns weights prepared for one device and precision, and a static key/value cache of `num_slots` rows by
`capacity` positions. A slot holds one row: the conditional or the null row of one request. The engine decides who
sits in which slot and what is sampled; a backend knows nothing of requests, guidance, sampling or the delay pattern.

The law of runners: a row's logits depend on that row alone. Whatever else is in the batch, in whichever order and
in whichever slots, the bits are the same; so one request's audio never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Backend(Protocol):
    """Rows in, logits out. One thread at a time; every tensor given or returned lies on the CPU."""

    num_slots: int
    capacity: int  # positions of one slot, prefix included
    precision: str  # that products are computed in
    own_weight_bytes: int  # of a copy of all weights; 0 where the model's own are read

    def begin(self, slot: int, context: Tensor | None) -> None:
        """Take a slot into use and compute its cross-attention keys and values once.

        `context` is float32 [L, D] of true length L (a padded one would be attended, and change the result). None
        is the null row, or a model without cross-attention: the cross-attention block adds exact zeros and is
        skipped. What a former row left in the slot is never read again.
        """

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        """Run several positions of one row at once, from `position` on, and return the last one's logits.

        `prefix` float32 [P, D] stands before the embedded `tokens` int64 [K, S], S >= 1; earlier positions must have
        been run. Long inputs may come in pieces: the positions after a piece attend to all before. Returns float32
        [K, codebook_size].
        """

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """Run one position of every row: `tokens` int64 [R, K] at `positions` [R] of `slots` [R], all different.

        Returns float32 [R, K, codebook_size], which the next call may overwrite.
        """

    def release(self, slot: int) -> None:
        """Give the slot back."""

    def close(self) -> None:
        """Let go of weights and cache."""
