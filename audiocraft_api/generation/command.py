"""What a client asks for, validated, and what it gets: plain data between the endpoints and the generation service."""

from __future__ import annotations

from dataclasses import dataclass

from audiocraft_api.core.constants import DEFAULT_CFG_COEF, DEFAULT_TOP_K
from audiocraft_api.core.params import AudioInput
from audiocraft_api.generation.recipe import Recipe


@dataclass(frozen=True, eq=False)
class GenerateCommand:
    """What a client asks for, validated: `model` is a checkpoint's public name, `output_format` one of `convert.FORMATS`."""

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
    audio_owner: str | None = None  # who alone may fetch the audio; None is everybody who knows its link
    seed_drawn: bool = False  # by the service, so that nobody asks for this audio again


@dataclass(frozen=True)
class GeneratedFile:
    """Audio in the store."""

    filename: str
    url: str
    recipe: Recipe


@dataclass(frozen=True)
class GeneratedBytes:
    """Audio that goes straight to the client; nobody but the result cache keeps it."""

    audio: bytes
    recipe: Recipe
