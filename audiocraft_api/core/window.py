"""A window: the frames of a request that the model decodes together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Frames that are decoded together: `num_frames` from `start`, of which the first `num_prompt_frames` are given."""

    start: int
    num_prompt_frames: int
    num_frames: int
