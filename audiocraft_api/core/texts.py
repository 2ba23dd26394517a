"""Which texts condition each frame of a generation: one pair for all of it, or one for each segment."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

from audiocraft_api.core.params import GenerationParams, Segment


@dataclass(frozen=True)
class Texts:
    """The texts of the conditional and the unconditional row."""

    description: str
    negative: str | None


class TextSchedule:
    """The texts of a request by frame. Segments with the same texts one after the other count as one."""

    def __init__(self, params: GenerationParams, frame_rate: float) -> None:
        segments = params.segments or (Segment(params.description, 0.0, params.negative_description),)
        ends = accumulate((segment.duration_seconds for segment in segments), initial=0.0)
        starts = [round(seconds * frame_rate) for seconds, _ in pairwise(ends)]
        self._changes: list[tuple[int, Texts]] = []  # first frame, ascending
        for start, segment in zip(starts, segments, strict=True):
            texts = Texts(segment.description, segment.negative_description)
            if not self._changes or self._changes[-1][1] != texts:
                self._changes.append((start, texts))

    def at(self, frame: int) -> Texts:
        """Return the texts of a frame."""
        return [texts for start, texts in self._changes if start <= frame][-1]

    def next_change(self, frame: int) -> int | None:
        """Return the first frame after `frame` that has other texts; None if there is none."""
        return next((start for start, _ in self._changes if start > frame), None)
