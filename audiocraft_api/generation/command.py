"""Plain data between the endpoints and the generation service: a validated request, and the audio made for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from audiocraft_api.core.constants import (
    DEFAULT_CFG_COEF,
    DEFAULT_EXTEND_STRIDE_SECONDS,
    DEFAULT_TOP_K,
    MAX_DURATION_SECONDS,
)
from audiocraft_api.core.params import AudioInput, Segment
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.generation.recipe import Recipe

# Marks a field that the first release did not have. A task is stored with it only if it is not the default, so that
# servers and workers of both releases can run the same tasks, and a repeated request keeps its fingerprint.
ADDED = {"added": True}


@dataclass(frozen=True, eq=False)
class GenerateCommand:
    """A validated request: `model` is a checkpoint's public name, `output_format` a key of `convert.FORMATS`."""

    prompt: str
    model: str
    duration_seconds: float
    output_format: str = "wav"
    temperature: float = 1.0
    top_k: int = DEFAULT_TOP_K
    top_p: float = 0.0
    cfg_coef: float = DEFAULT_CFG_COEF
    seed: int | None = None
    melody: AudioInput | None = None
    audio_owner: str | None = None  # the only caller who may fetch the audio; None: anyone with the link
    seed_drawn: bool = False  # the service drew the seed, so no later request can have the same one by intention
    extend_stride_seconds: float = field(default=DEFAULT_EXTEND_STRIDE_SECONDS, metadata=ADDED)
    negative_prompt: str | None = field(default=None, metadata=ADDED)
    # Instead of `prompt`, which is then the first segment's; together they have the duration.
    segments: tuple[Segment, ...] = field(default=(), metadata=ADDED)

    @property
    def time_factor(self) -> float:
        """How many times the limits of time apply, which are those of synchronous requests."""
        return max(1.0, self.duration_seconds / MAX_DURATION_SECONDS)


@dataclass
class Progress:
    """The progress of a command, readable from other threads while it runs."""

    request: EngineRequest | None = None  # None until the engine has accepted the command, or if it never has to

    @property
    def frames(self) -> tuple[int, int]:
        """Frames done and frames in total; (0, 0) until decoding starts."""
        return self.request.progress if self.request else (0, 0)


@dataclass(frozen=True)
class GeneratedFile:
    """Audio in the store."""

    filename: str
    url: str
    recipe: Recipe


@dataclass(frozen=True)
class GeneratedBytes:
    """Encoded audio in memory."""

    audio: bytes
    recipe: Recipe
