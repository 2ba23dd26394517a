"""One running request: its windows, its sequence and how far it has come. All the state that is not the backend's.

Two numbers say where it stands in a window: `num_filled` columns of the sequence hold tokens, `num_fed` of them have
been through the model. The difference is 1 while it decodes, more before a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.delay import UNKNOWN, DelayPattern

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import Window


@dataclass(frozen=True, eq=False)
class Row:
    """What one row is conditioned on: a prefix before its tokens, a context to attend to, or neither."""

    prefix: Tensor | None  # [P, D]
    context: Tensor | None  # [L, D]


@dataclass(frozen=True, eq=False)
class WindowInputs:
    """What must be known before a window begins: its rows and, for the first one, the windows and the prompt."""

    rows: Sequence[Row]  # conditional, null; or conditional alone
    windows: Sequence[Window]
    prompt: Tensor  # [K, P] codes, P may be 0


class RunningRequest:
    """A request that holds slots. Touched by the engine's thread alone."""

    def __init__(self, request: EngineRequest, slots: Sequence[int]) -> None:
        self.request = request
        self.params = request.params
        self.generator = torch.Generator().manual_seed(self.params.seed)
        self.num_draws = 0  # columns sampled, in all windows
        self.slots = list(slots)
        self.preparation: Future[WindowInputs] | None = None  # of the next window; None while one is running
        self.rows: Sequence[Row] = ()
        self.decoder: Any = None  # of the codec, opened and used by the codec's thread
        self._windows: Sequence[Window] = ()
        self._index = -1
        self._num_frames_before = 0  # delivered by earlier windows
        # Of the window:
        self.sequence: Tensor  # [K, S]
        self.num_filled = 0
        self.num_fed = 0
        self.prefix_length = 0
        self.is_prefix_run = True
        self._pattern: DelayPattern
        self._num_frames = 0
        self.num_delivered = self._delivered_at_start = 0

    def begin_window(self, preparation: WindowInputs, pattern: DelayPattern) -> None:
        """Take the next window: lay out its sequence and start where its prompt ends."""
        prompt = preparation.prompt
        if self._index < 0:
            self._windows = preparation.windows
            delivered = 0
        else:
            self._num_frames_before += self.num_delivered - self._delivered_at_start
            prompt = pattern.codes(self.sequence, self._num_frames - self._next.num_prompt_frames, self._num_frames)
            delivered = prompt.shape[1]
        self._index += 1
        self._pattern = pattern
        self.preparation = None
        self.rows = preparation.rows
        self.prefix_length = 0 if self.rows[0].prefix is None else len(self.rows[0].prefix)
        self.is_prefix_run = self.prefix_length == 0
        self._num_frames = self._windows[self._index].num_frames
        self.sequence = pattern.sequence(prompt, self._num_frames)  # [K, S]
        self.num_filled = prompt.shape[1] + 1
        self.num_fed = 0
        self.num_delivered = self._delivered_at_start = delivered  # frames of this window

    @property
    def is_decoding(self) -> bool:
        """Say whether its next step is one position; else it waits for a preparation or a prefill."""
        return self.preparation is None and self.is_prefix_run and self.num_filled - self.num_fed == 1

    @property
    def position(self) -> int:
        """Where what is fed next stands in the cache."""
        return self.prefix_length + self.num_fed if self.is_prefix_run else 0

    @property
    def num_prefix_left(self) -> int:
        """Positions of the prefix that are still to be run."""
        return 0 if self.is_prefix_run else self.prefix_length

    @property
    def next_column(self) -> Tensor:
        """The tokens [K] to feed next."""
        return self.sequence[:, self.num_fed]

    def write(self, tokens: Tensor) -> None:
        """Fill the next column with sampled tokens [K] where the pattern and the prompt leave it open."""
        self.num_draws += 1
        column = self.sequence[:, self.num_filled]
        self.fill(torch.where(column == UNKNOWN, tokens, column).unsqueeze(1))

    def fill(self, columns: Tensor) -> None:
        """Take finished columns [K, n] as the next ones."""
        end = self.num_filled + columns.shape[1]
        self.sequence[:, self.num_filled : end] = columns
        self.num_filled, self.num_fed = end, end - 1
        done = max(self._num_complete, self._delivered_at_start)
        self.request.advance(self._num_frames_before + done - self._delivered_at_start)

    @property
    def num_open(self) -> int:
        """Columns that are still to be filled."""
        return self.sequence.shape[1] - self.num_filled

    @property
    def is_window_done(self) -> bool:
        return self.num_filled == self.sequence.shape[1]

    @property
    def next_window(self) -> Window | None:
        """The window after this one, None in the last."""
        return self._next if self._index + 1 < len(self._windows) else None

    @property
    def num_output_frames(self) -> int:
        """Frames of the whole result, a prompt included."""
        return self._windows[-1].start + self._windows[-1].num_frames

    def take_codes(self, at_least: int) -> Tensor | None:
        """Return the codes [K, t] that are complete and not yet delivered, None while there are fewer than asked for."""
        if self._num_complete - self.num_delivered < at_least:
            return None
        codes = self._pattern.codes(self.sequence, self.num_delivered, self._num_complete)
        self.num_delivered = self._num_complete
        return codes

    @property
    def _num_complete(self) -> int:
        return self._pattern.num_complete(self.num_filled)

    @property
    def _next(self) -> Window:
        return self._windows[self._index + 1]
