"""The parameters of one generation. Frozen: they stay with their request through every package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from audiocraft_api.core.constants import DEFAULT_EXTEND_STRIDE_SECONDS, FRAME_RATE
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.performance import Performance

Waveform = npt.NDArray[np.float32]  # [C, T], -1 … 1


@dataclass(frozen=True, eq=False)
class Codes:
    """Audio as the tokens of a codec. `codec` is a digest: to another codec, the same tokens mean other audio."""

    tokens: npt.NDArray[np.uint16]  # [K, T]
    codec: str


@dataclass(frozen=True, eq=False)
class AudioInput:
    """Audio that a generation starts from: a melody to follow, or audio to continue.

    `codes` are those that the audio to continue was made of, if they are known. A model with the same codec continues
    them as they are. Otherwise it encodes the waveform, which loses some quality.
    """

    waveform: Waveform  # [C, T]
    sample_rate: int  # Hz
    codes: Codes | None = None


Melody: TypeAlias = AudioInput | MelodyLine  # a recording, or notes


def seconds_of(audio: AudioInput | None) -> float:
    """Return the duration of audio; 0 without any. That of whole frames is exact, although resampling may round it."""
    if audio is None:
        return 0.0
    num_samples: int = audio.waveform.shape[1]
    return round(num_samples * FRAME_RATE / audio.sample_rate, 2) / FRAME_RATE


class Segment(NamedTuple):
    """A part of a generation with texts of its own. Stored tasks contain it as a list of these three values."""

    description: str
    duration_seconds: float
    negative_description: str | None = None


@dataclass(frozen=True, eq=False)
class GenerationParams:
    """Everything that determines a generation's tokens, with audiocraft's meanings and defaults.

    `model` is a checkpoint's public name, `description` the text ("" means unconditional). Guidance leads away from
    `negative_description`, the text of the unconditional row; None leaves that row without a text. A `top_p` above 0
    replaces `top_k` (audiocraft `lm.py::_sample_next_token`). `temperature` 0 or `use_sampling` False is greedy. A
    duration over the model's longest window is generated in several windows, each with `extend_stride_seconds` of new
    audio (audiocraft `musicgen.py::_generate_tokens`).

    `segments` replace `description` and `negative_description`, and together have the duration (`core/texts.py`).
    `performance` replaces all controls from `description` to `cfg_coef`, and has the duration.
    """

    model: str
    description: str
    duration_seconds: float
    seed: int
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    cfg_coef: float = 3.0
    use_sampling: bool = True
    extend_stride_seconds: float = DEFAULT_EXTEND_STRIDE_SECONDS
    negative_description: str | None = None
    segments: tuple[Segment, ...] = ()
    melody: Melody | None = None
    audio_prompt: AudioInput | None = None
    performance: Performance | None = None
