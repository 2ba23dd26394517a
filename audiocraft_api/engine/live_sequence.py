"""A running performance: a sequence whose controls change at frames, with windows that follow without end.

All windows have the model's full length, and a window is cut where the context is reset or the performance ends. So
the tokens of a frame depend neither on when the performance ends nor on later changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from audiocraft_api.core.live_request import Draft, LiveRequest
from audiocraft_api.core.performance import Blends, Change, Controls, Timeline
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.core.window import Window
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.sequence import Conditioning, Sequence


@dataclass(eq=False)
class UpcomingChange:
    """The next change. A draft has no frame until its contexts are computed."""

    change: Change
    draft: Draft | None
    contexts: Future[dict[str, Tensor]]
    has_frame: bool


class LiveSequence(Sequence):
    """A sequence that plays a performance: live, or again."""

    def __init__(
        self,
        request: EngineRequest,
        slots: Iterable[int],
        pattern: DelayPattern,
        *,
        window_frames: int,
        stride_frames: int,
    ) -> None:
        """Windows have `window_frames`, of which `stride_frames` are new unless they follow a reset."""
        super().__init__(request, slots, pattern)
        self._window_frames, self._stride_frames = window_frames, stride_frames
        performance = request.params.performance
        assert performance is not None
        self.live = request if isinstance(request, LiveRequest) else None
        self.keeps_slots = self.live is not None
        self.end_frame = performance.num_frames
        self.known_changes = iter(performance.changes)
        self.upcoming: UpcomingChange | None = None
        self.timeline: Timeline | None = None  # None until the first change is applied
        self.contexts: dict[str, Tensor] = {}  # of the texts of the timeline
        self.is_late = False  # a change is due, and its contexts are not computed yet
        self._blends: Blends | None = None  # those of `rows`
        self._controls: Controls | None = None  # those of `params`
        self._is_cut = False

    @property
    def next_frame(self) -> int:
        """The frame that the next step completes; before one is complete, the window's first new frame."""
        return self._window.start + max(self._window.num_prompt_frames, self._pattern.num_complete(self.num_filled))

    @property
    def earliest_change_frame(self) -> int:
        """The first frame that a new change can apply to: no step has used the controls of that frame yet."""
        assert self.timeline is not None
        first_new = self._window.start + self._window.num_prompt_frames
        return max(self.next_frame, first_new + 1, self.timeline.changes[-1].frame + 1)

    def apply(self, upcoming: UpcomingChange) -> None:
        """Add a change to the timeline."""
        self.contexts |= upcoming.contexts.result()
        if self.timeline is None:
            self.timeline = Timeline(upcoming.change)
        else:
            self.timeline.add(upcoming.change)
        if self.live is not None and upcoming.draft is not None:
            self.live.settle(upcoming.draft, upcoming.change)
        self.upcoming = None

    def use_controls_of(self, frame: int) -> bool:
        """Set the parameters and rows of a frame; return whether any of them are new."""
        assert self.timeline is not None
        blends, controls = self.timeline.blends(frame), self.timeline.controls
        if blends == self._blends and controls is self._controls:
            return False
        self._blends, self._controls = blends, controls
        self.params = replace(
            self.params,
            temperature=controls.temperature,
            top_k=controls.top_k,
            top_p=controls.top_p,
            cfg_coef=controls.cfg_coef,
        )
        self.contexts = {text: self.contexts[text] for text in self.timeline.texts}
        self.rows = [
            Conditioning(None, None, tuple((self.contexts[text], weight) for text, weight in blend)) for blend in blends
        ]
        return True

    @property
    def next_window(self) -> Window | None:
        """The window that starts next unless another change resets the context; None if the performance ends."""
        if self._window_index < 0:
            return Window(0, 0, self._window_frames)
        end = self._window.start + self._num_frames
        if end >= self.end_frame:
            return None
        if self._is_cut:
            return Window(end, 0, self._window_frames)
        num_prompt_frames = self._window_frames - self._stride_frames
        return Window(end - num_prompt_frames, num_prompt_frames, self._window_frames)

    def follow_with(self, window: Window) -> None:
        """Set the window that starts next."""
        self._windows = [*self._windows[: self._window_index + 1], window]
        self._is_cut = False

    def cut(self, *, is_end: bool) -> None:
        """End the current window with the frames that are complete, because of a reset or because all of it ends."""
        self._num_frames = self.next_frame - self._window.start
        self._is_cut = True
        if is_end:
            self.end_frame = self.next_frame

    @property
    def is_decoding(self) -> bool:
        if not super().is_decoding or self.is_late or self._is_cut:
            return False
        return self.live is None or self.next_frame < self.live.num_frames_allowed

    @property
    def needs_prefill(self) -> bool:
        return super().needs_prefill and not self._is_cut

    @property
    def num_columns_left(self) -> int:
        assert self.timeline is not None
        ends = [self._window.start + self._num_frames, self.end_frame]
        if self.upcoming is not None and self.upcoming.has_frame:
            ends.append(self.upcoming.change.frame)
        if (frame := self.timeline.next_change(self.next_frame)) is not None:
            ends.append(frame)
        return min(ends) - self._window.start + self._pattern.max_delay + 1 - self.num_filled

    @property
    def is_window_done(self) -> bool:
        return self._is_cut or super().is_window_done

    @property
    def num_output_frames(self) -> int:
        return self.end_frame

    @property
    def _num_complete(self) -> int:
        return min(max(super()._num_complete, self._num_delivered_at_start), self._num_frames)
