"""The delay pattern in closed form: where the codes of each frame are in the sequence that the model reads.

Column 0 holds the special token only. In column s, codebook q holds frame s - 1 - delays[q] if that is in 0 ... T - 1,
and the special token otherwise (MusicGen paper, section 2.2; audiocraft
`codebooks_patterns.py::DelayedPatternProvider`). Knows nothing of models and sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNKNOWN = -1  # marks a token that has not been sampled yet


class DelayPattern:
    """Converts between codes [K, T] and delayed sequences [K, S]."""

    def __init__(self, delays: Sequence[int], special_token: int) -> None:
        """`delays` are those of the codebooks in frames, ascending: mono 0,1,2,3; stereo 0,0,1,1,2,2,3,3."""
        self.special_token = special_token
        self.max_delay = max(delays)
        self._delays = torch.tensor(delays).view(-1, 1)  # [K, 1]

    def num_columns(self, num_frames: int) -> int:
        """Return the number of columns for `num_frames`. All columns but the last are fed to the model."""
        return num_frames + self.max_delay + 1

    def sequence(self, prompt: Tensor, num_frames: int) -> Tensor:
        """Return the sequence [K, S] of `num_frames` frames that starts with the codes [K, P], UNKNOWN behind them."""
        codes = torch.full((len(self._delays), num_frames), UNKNOWN)
        codes[:, : prompt.shape[1]] = prompt
        frames = torch.arange(self.num_columns(num_frames)) - 1 - self._delays  # [K, S]
        placed = codes.gather(1, frames.clamp(0, num_frames - 1))
        return torch.where((frames >= 0) & (frames < num_frames), placed, self.special_token)

    def num_complete(self, num_filled: int) -> int:
        """Return how many frames are complete when the first `num_filled` columns are filled."""
        return max(0, num_filled - 1 - self.max_delay)

    def codes(self, sequence: Tensor, start: int, stop: int) -> Tensor:
        """Return the codes [K, stop - start] of frames `start` ... `stop` - 1 of a sequence [K, S]."""
        return sequence.gather(1, torch.arange(start, stop) + 1 + self._delays)
