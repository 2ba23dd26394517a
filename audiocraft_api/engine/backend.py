"""The interface of a backend, which turns rows of tokens into logits and stores their keys and values.

A backend owns weights prepared for one device and precision, and a static key/value cache of `num_slots` rows by
`capacity` positions. A slot holds one row: the conditional or the unconditional row of a request. The engine assigns
the slots and samples; a backend knows nothing of requests, guidance, sampling or the delay pattern.

The invariant of backends: a row's logits depend on that row alone, bit for bit, whatever the other rows of the batch,
their order and their slots. So a request's audio never depends on concurrent requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    Part = tuple[Tensor, float]  # a context float32 [L, D], and the weight of its attention output


class Backend(Protocol):
    """Rows in, logits out. Not thread-safe. Accepts and returns tensors on the CPU."""

    num_slots: int
    capacity: int  # positions of one slot, prefix included
    precision: str  # of its matrix products
    own_weight_bytes: int  # size of its own copy of all weights; 0 if it reads the model's

    def begin(self, slot: int, context: Tensor | None) -> None:
        """Start a new row in a slot, or give its row another context; compute the cross-attention keys and values.

        `context` is float32 [L, D] without padding, which would be attended. None stands for a row without a
        text, or for a model without cross-attention: there the cross-attention block adds exact zeros and is skipped.
        Nothing that an earlier row left in the slot is read again. A row with another context keeps its earlier
        positions.
        """

    def blend(self, slot: int, parts: Sequence[Part]) -> None:
        """Like `begin`, for a row that attends to several contexts: the weighted attention outputs are added in order.

        One part of weight 1 gives the bits of `begin`, no part those of None. Keys and values of a tensor that the row
        already attends to are kept, so that only weights change.
        """

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        """Process several positions of one row at once, from `position` on, and return the last one's logits.

        `prefix` float32 [P, D] precedes the embedded `tokens` int64 [K, S], S >= 1. All earlier positions must have
        been processed; a long input may be split into chunks. Returns float32 [K, codebook_size].
        """

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """Process one position of each row: `tokens` int64 [R, K] at `positions` [R] of `slots` [R], all different.

        Returns float32 [R, K, codebook_size], which the next call may overwrite.
        """

    def release(self, slot: int) -> None:
        """Release what the slot's row refers to."""

    def close(self) -> None:
        """Free weights and cache."""
