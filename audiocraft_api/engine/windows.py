"""How a generation is cut into windows when it is longer than the model's longest (audiocraft `musicgen.py::_generate_tokens`).

Each window after the first starts `extend_stride_seconds` later than the one before and is given what that one
generated beyond the stride as its prompt. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from audiocraft_api.engine.params import GenerationParams
from audiocraft_api.errors import InvalidRequest


@dataclass(frozen=True)
class Window:
    """One run of the model over `num_frames`, the first `num_prompt_frames` of them given."""

    start_seconds: float
    num_frames: int
    num_prompt_frames: int


def plan_windows(
    params: GenerationParams, *, num_prompt_frames: int, frame_rate: float, max_window_frames: int
) -> list[Window]:
    """Return the windows of a request. Raises InvalidRequest when prompt, stride and duration do not fit together.

    Durations become frames by the same floating point steps as in audiocraft, so that the counts agree.
    """
    duration, max_seconds = params.duration_seconds, max_window_frames / frame_rate
    num_frames = int(duration * frame_rate)
    if num_prompt_frames >= min(num_frames, max_window_frames):
        raise InvalidRequest(
            "The audio to continue is as long as the audio asked for, or longer than the model's window."
        )
    if num_frames <= max_window_frames:
        return [Window(0.0, num_frames, num_prompt_frames)]
    stride = int(frame_rate * params.extend_stride_seconds)
    if not 0 < stride < max_window_frames:
        raise InvalidRequest(
            f"The stride must lie between one frame and the model's window of {max_seconds:g} seconds."
        )
    windows: list[Window] = []
    offset, prompt = 0, num_prompt_frames
    while offset + prompt < num_frames:
        seconds = offset / frame_rate
        length = int(min(duration - seconds, max_seconds) * frame_rate)
        if length <= prompt:  # rounding left nothing to add
            break
        windows.append(Window(seconds, length, prompt))
        prompt = max(0, length - stride)
        offset += stride
    return windows


def num_output_frames(windows: list[Window]) -> int:
    """Return the frames of the whole result: the first window's, and what each later one adds."""
    return windows[0].num_frames + sum(window.num_frames - window.num_prompt_frames for window in windows[1:])
