"""A running request: its windows, its tokens and its position. All of its state except the backend's.

Two numbers give its position in a window: the first `num_filled` columns hold tokens, and the model has processed the
first `num_fed` of them. The difference is 1 while the sequence decodes, and more before a prefill.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from audiocraft_api.core.request import EngineRequest
from audiocraft_api.core.texts import Texts, TextSchedule
from audiocraft_api.engine.delay import UNKNOWN, DelayPattern

if TYPE_CHECKING:
    from audiocraft_api.core.window import Window


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What one row is conditioned on: a prefix before its tokens, a context for cross-attention, or neither.

    `parts` replace the context by several, each with the weight of its attention output.
    """

    prefix: Tensor | None  # [P, D]
    context: Tensor | None  # [L, D]
    parts: tuple[tuple[Tensor, float], ...] = ()


@dataclass(frozen=True, eq=False)
class WindowInputs:
    """What a window needs before it starts. `windows` and `prompt` are set for the first window only."""

    rows: list[Conditioning]  # conditional and unconditional, or conditional only
    windows: list[Window]
    prompt: Tensor  # codes [K, P]; P may be 0
    texts: TextSchedule


@dataclass(frozen=True, eq=False)
class TextChange:
    """A change of texts within a window: the step that samples `column` is the first one with the new rows."""

    column: int
    rows: Future[list[Conditioning]]


class Sequence:
    """A request that occupies slots. Only the loop's thread uses it, except for `decoder`."""

    keeps_slots = False  # whether it keeps its slots between two windows, even if other requests wait for them

    def __init__(self, request: EngineRequest, slots: Iterable[int], pattern: DelayPattern) -> None:
        self.request = request
        self.params = request.params
        self.generator = torch.Generator().manual_seed(self.params.seed)
        self.num_draws = 0  # columns sampled, in all windows
        self.slots = list(slots)
        self.pending_inputs: Future[WindowInputs] | None = None  # of the next window; None while a window runs
        self.rows: list[Conditioning] = []
        self.text_change: TextChange | None = None  # the next one in this window
        self.decoder: Any = None  # opened and used by the codec's thread
        self._pattern = pattern
        self._windows: list[Window] = []
        self._texts: TextSchedule
        self._text_frame = 0  # a frame whose texts the rows have
        self._window_index = -1
        self._num_frames_before = 0  # delivered by earlier windows
        # State of the current window:
        self.tokens = torch.empty(0, 0, dtype=torch.long)  # [K, S], in the delay pattern
        self.num_filled = 0
        self.num_fed = 0
        self.prefix_length = 0
        self.is_prefix_done = True
        self._num_frames = 0
        self.num_delivered = self._num_delivered_at_start = 0

    def start_window(self, inputs: WindowInputs) -> None:
        """Start the next window: lay out its tokens, with its prompt filled in."""
        prompt = inputs.prompt
        if self._window_index < 0:
            self._windows = inputs.windows
            delivered = 0
        else:
            self._num_frames_before += self.num_delivered - self._num_delivered_at_start
            first = self._num_frames - self._following_window.num_prompt_frames
            prompt = self._pattern.codes(self.tokens, first, self._num_frames)
            delivered = prompt.shape[1]
        self._window_index += 1
        self.pending_inputs = None
        self.rows = inputs.rows
        self._texts, self._text_frame = inputs.texts, self._window.start + self._window.num_prompt_frames
        self.prefix_length = 0 if self.rows[0].prefix is None else len(self.rows[0].prefix)
        self.is_prefix_done = self.prefix_length == 0
        self._num_frames = self._window.num_frames
        self.tokens = self._pattern.sequence(prompt, self._num_frames)  # [K, S]
        self.num_filled = prompt.shape[1] + 1
        self.num_fed = 0
        self.num_delivered = self._num_delivered_at_start = delivered  # frames of this window

    @property
    def is_decoding(self) -> bool:
        """Return whether the next step feeds one position. Otherwise the sequence waits for its inputs or a prefill."""
        return self.pending_inputs is None and self._is_prefilled and not self.is_text_change_due

    @property
    def needs_prefill(self) -> bool:
        """Whether a prefix or given columns must be processed before the sequence can decode."""
        return self.pending_inputs is None and not self._is_prefilled

    @property
    def _is_prefilled(self) -> bool:
        return self.is_prefix_done and self.num_filled - self.num_fed == 1

    @property
    def is_text_change_due(self) -> bool:
        """Whether the next step needs new rows."""
        return self.text_change is not None and self.text_change.column == self.num_filled

    def next_texts(self) -> tuple[int, Texts] | None:
        """Return the column of the next change in this window, and its texts; None if there is none.

        A step has the texts of the frame that it completes, so that all tokens of the frames before a change stay as
        they are. A prefix does not change within a window.
        """
        frame = self._texts.next_change(self._text_frame)
        if frame is None or frame >= self._window.start + self._num_frames or self.prefix_length:
            return None
        return frame - self._window.start + self._pattern.max_delay + 1, self._texts.at(frame)

    def change_texts(self, rows: list[Conditioning]) -> None:
        """Use the rows of the change that is due."""
        frame = self._texts.next_change(self._text_frame)
        assert frame is not None
        self.rows, self._text_frame, self.text_change = rows, frame, None

    @property
    def position(self) -> int:
        """The position in the cache of the next input."""
        return self.prefix_length + self.num_fed if self.is_prefix_done else 0

    @property
    def num_prefix_left(self) -> int:
        """Positions of the prefix that have not been fed yet."""
        return 0 if self.is_prefix_done else self.prefix_length

    @property
    def next_column(self) -> Tensor:
        """The tokens [K] to feed next."""
        return self.tokens[:, self.num_fed]

    def append(self, sampled: Tensor) -> None:
        """Fill the next column with sampled tokens [K], except where the pattern or the prompt has fixed the token."""
        column = self.tokens[:, self.num_filled]
        self.append_columns(torch.where(column == UNKNOWN, sampled, column).unsqueeze(1))

    def append_columns(self, columns: Tensor) -> None:
        """Fill the next columns with final tokens [K, n]."""
        self.num_draws += columns.shape[1]
        end = self.num_filled + columns.shape[1]
        self.tokens[:, self.num_filled : end] = columns
        self.num_filled, self.num_fed = end, end - 1
        done = max(self._num_complete, self._num_delivered_at_start)
        self.request.advance(self._num_frames_before + done - self._num_delivered_at_start)

    @property
    def num_columns_left(self) -> int:
        """Columns of this window, up to the next change of texts, that are not filled yet."""
        end = self.tokens.shape[1] if self.text_change is None else self.text_change.column
        return end - self.num_filled

    @property
    def is_window_done(self) -> bool:
        return self.num_filled == self.tokens.shape[1]

    @property
    def next_window(self) -> Window | None:
        """The window after this one; None in the last."""
        return self._following_window if self._window_index + 1 < len(self._windows) else None

    @property
    def num_output_frames(self) -> int:
        """Frames of the whole result, including an audio prompt."""
        return self._windows[-1].start + self._windows[-1].num_frames

    def take_codes(self, min_frames: int) -> Tensor | None:
        """Return the complete codes [K, t] not yet delivered; None while there are fewer than `min_frames`."""
        if self._num_complete - self.num_delivered < min_frames:
            return None
        codes = self._pattern.codes(self.tokens, self.num_delivered, self._num_complete)
        self.num_delivered = self._num_complete
        return codes

    @property
    def _num_complete(self) -> int:
        return self._pattern.num_complete(self.num_filled)

    @property
    def _window(self) -> Window:
        return self._windows[self._window_index]

    @property
    def _following_window(self) -> Window:
        return self._windows[self._window_index + 1]
