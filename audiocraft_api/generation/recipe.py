"""What was made and how: in every answer, in what the result cache keeps, and in the file's tags.

Knows the names that clients read; neither HTTP nor an encoder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from audiocraft_api import __version__
from audiocraft_api.audio.tags import Tags
from audiocraft_api.core.params import AudioInput, GenerationParams

# https://cv.iptc.org/newscodes/digitalsourcetype/: made by a model that has learnt from the works of others
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@dataclass(frozen=True)
class Recipe:
    """What was made and how; in every answer.

    `details` is all that it takes to make it again, by the names of the request's fields where they have one.
    """

    format: str
    sample_rate: int  # Hz, of the file
    duration_seconds: float  # of the audio really made
    generation_seconds: float  # that this answer took
    seed: int
    model: str
    revision: str
    details: Mapping[str, Any] | None = None  # None only for audio that an older release made
    is_cached: bool = False

    def answer(self) -> dict[str, Any]:
        """Return what every JSON answer says of audio."""
        return {
            "generation_time": round(self.generation_seconds, 3),
            "format": self.format,
            "sample_rate": self.sample_rate,
            "seed": self.seed,
            "duration": self.duration_seconds,
            "model": self.model,
            "revision": self.revision,
            "cached": self.is_cached,
            "recipe": self.details,
        }

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Recipe:
        """Return what `answer` was made from."""
        return cls(
            format=answer["format"],
            sample_rate=answer["sample_rate"],
            duration_seconds=answer["duration"],
            generation_seconds=answer["generation_time"],
            seed=answer["seed"],
            model=answer["model"],
            revision=answer["revision"],
            details=answer.get("recipe"),
            is_cached=answer.get("cached", False),
        )

    def timed_since(self, started: float) -> Recipe:
        """Return the recipe of an answer that is given now and was asked for then (`time.monotonic()`)."""
        return replace(self, generation_seconds=time.monotonic() - started)

    def tags(self, *, with_prompt: bool = True) -> Tags:
        """Return what the file says of itself.

        Without the time it was made at, so that the same question makes the same file to the byte.
        """
        left_out = {"created"} if with_prompt else {"created", "prompt"}
        details = {name: value for name, value in (self.details or {}).items() if name not in left_out}
        comment = json.dumps({"digital_source_type": DIGITAL_SOURCE_TYPE, **details}, separators=(",", ":"))
        return Tags(
            title=details.get("prompt", ""),
            artist=f"AudioCraft API {__version__}, {self.model}@{self.revision}",
            genre="AI-generated",
            comment=comment.replace("\x7f", "\\u007f"),  # the one control that json leaves as it is
        )


def details_of(
    params: GenerationParams, revision: str, precision: str, output_format: str, engine: str
) -> dict[str, Any]:
    """Return a recipe's details: everything resolved, and what it is made with, now."""
    return {
        "prompt": params.description,
        "model": params.model,
        "revision": revision,
        "duration": params.duration_seconds,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "cfg_coef": params.cfg_coef,
        "seed": params.seed,
        "melody": None if params.melody is None else digest_of(params.melody),
        "output_format": output_format,
        "engine": engine,
        "precision": precision,
        "service_version": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def digest_of(audio: AudioInput) -> str:
    """Return the SHA-256 of a decoded tune: its sample rate and shape in a line of text, then its samples."""
    num_channels, num_samples = audio.waveform.shape
    digest = hashlib.sha256(f"{audio.sample_rate} {num_channels} {num_samples}\n".encode())
    digest.update(np.ascontiguousarray(audio.waveform, "<f4").tobytes())
    return digest.hexdigest()
