"""A live generation inside an engine: a request whose controls change while it runs, and which waits for its listener.

The caller changes controls, says how far the engine may go, and takes the audio; the engine applies each change to a
frame of its choice and reports it. Blocks of audio are kept only until they are taken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.core.params import GenerationParams, Waveform
from audiocraft_api.core.performance import Change, Controls
from audiocraft_api.core.request import EngineRequest, GenerationResult


@dataclass(frozen=True, eq=False)
class Draft:
    """A change that has no frame yet. `tag` is for the caller, who gets it back."""

    controls: Controls
    transition_frames: int = 0
    resets_context: bool = False
    tag: Any = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a draft: the frame from which it holds, or the error because of which it never will."""

    draft: Draft
    frame: int = 0
    error: AudioCraftError | None = None


class LiveRequest(EngineRequest):
    """A generation that is steered. Thread-safe. `params.performance` is how it begins; its length is the limit."""

    def __init__(self, params: GenerationParams) -> None:
        super().__init__(params)
        assert params.performance is not None
        self._changes = list(params.performance.changes)
        self._drafts: deque[Draft] = deque()
        self._outcomes: list[Outcome] = []
        self._num_frames_allowed = 0
        self._is_stopping = False

    # --- the caller's side

    @property
    def num_drafts(self) -> int:
        """Changes that have no frame yet."""
        return len(self._drafts)

    @property
    def num_frames_done(self) -> int:
        return self.progress[0]

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes that have a frame, by frame."""
        with self._condition:
            return tuple(self._changes)

    def change(self, draft: Draft) -> None:
        """Ask for a change. `take` reports the frame from which it holds."""
        with self._condition:
            self._drafts.append(draft)

    def allow(self, num_frames: int) -> None:
        """Let the engine generate up to this number of frames."""
        self._num_frames_allowed = num_frames

    def stop(self) -> None:
        """End the request with the frames that are complete. Without any, this cancels it."""
        self._is_stopping = True

    def take(self, timeout_seconds: float) -> tuple[list[Waveform], list[Outcome]]:
        """Return the blocks [C, t] and outcomes since the last call; wait if there are none and it has not ended.

        Raises the error that ended the request once everything before has been taken.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._chunks or self._outcomes or self.has_ended, timeout_seconds)
            blocks, outcomes = self._chunks, self._outcomes
            self._chunks, self._outcomes = [], []
        if not blocks and not outcomes and self.error is not None:
            raise self.error
        return blocks, outcomes

    # --- the engine's side

    @property
    def num_frames_allowed(self) -> int:
        return self._num_frames_allowed

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def next_draft(self) -> Draft | None:
        """Remove and return the oldest draft."""
        with self._condition:
            return self._drafts.popleft() if self._drafts else None

    def settle(self, draft: Draft, change: Change) -> None:
        """Report the frame of a draft."""
        with self._condition:
            self._changes.append(change)
            self._outcomes.append(Outcome(draft, change.frame))
            self._condition.notify_all()

    def reject(self, draft: Draft, error: AudioCraftError) -> None:
        """Report that a draft cannot be applied; the music goes on without it."""
        with self._condition:
            self._outcomes.append(Outcome(draft, error=error))
            self._condition.notify_all()

    def add_codes(self, tokens: npt.NDArray[np.uint16]) -> None:
        """Keep nothing, because a performance may last for hours."""

    def finish(self) -> None:
        """End the request. Its blocks stay until they are taken; the result contains no audio."""
        info = self.audio_info
        assert info is not None
        empty = np.zeros((1, 0), np.float32)
        result = GenerationResult(
            empty, info.sample_rate, self.num_frames_done, self.params.model, info.revision, info.precision
        )
        self._end("finished", result, None)
