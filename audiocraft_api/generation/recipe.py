"""Recipes: everything that is needed to generate the same audio again. Responses, the cache and file tags use them.

Knows the field names that clients read; knows neither HTTP nor an encoder.
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
from audiocraft_api.audio.finishing import Finishing
from audiocraft_api.audio.tags import Tags
from audiocraft_api.core.constants import DEFAULT_EXTEND_STRIDE_SECONDS, MAX_DURATION_SECONDS
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.params import AudioInput, Codes, GenerationParams, Melody, Segment, seconds_of
from audiocraft_api.generation.performance_recipe import performance_json

# From https://cv.iptc.org/newscodes/digitalsourcetype/: made by a model trained on the works of others.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

PROMPTS = (
    "prompt",
    "negative_prompt",
    "segments",
    "performance",
)  # the fields of a recipe that contain texts of the client


@dataclass(frozen=True)
class Recipe:
    """What audio is and how it was made.

    `details` contains everything that is needed to generate the audio again, under the request's field names if any.
    """

    format: str
    sample_rate: int  # Hz, of the file
    duration_seconds: float  # of the audio in the file
    generation_seconds: float  # from the request to the audio
    seed: int
    model: str
    revision: str
    details: Mapping[str, Any] | None = None  # None only for audio made by releases before recipes
    is_cached: bool = False
    analysis: Mapping[str, Any] | None = None  # what was measured in the audio, if the client asked
    loop: Mapping[str, Any] | None = None  # how a loop was cut, if the client asked for one

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that every JSON response about audio has."""
        reports = {"analysis": self.analysis, "loop": self.loop}
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
        } | {name: report for name, report in reports.items() if report is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` made `fields` from; other fields are ignored."""
        return cls(
            format=fields["format"],
            sample_rate=fields["sample_rate"],
            duration_seconds=fields["duration"],
            generation_seconds=fields["generation_time"],
            seed=fields["seed"],
            model=fields["model"],
            revision=fields["revision"],
            details=fields.get("recipe"),
            is_cached=fields.get("cached", False),
            analysis=fields.get("analysis"),
            loop=fields.get("loop"),
        )

    def timed_since(self, started: float) -> Recipe:
        """Return the recipe with the time from `started` (`time.monotonic()`) until now as its generation time."""
        return replace(self, generation_seconds=time.monotonic() - started)

    def tags(self, *, with_prompt: bool = True, stem: str | None = None) -> Tags:
        """Return the tags of the file, or of one of its stems.

        They leave out the creation time, so that equal requests make equal files.
        """
        left_out = {"created"} if with_prompt else {"created", *PROMPTS}
        details = {name: value for name, value in (self.details or {}).items() if name not in left_out}
        part = {} if stem is None else {"stem": stem}
        comment = json.dumps({"digital_source_type": DIGITAL_SOURCE_TYPE, **part, **details}, separators=(",", ":"))
        title = details.get("prompt", "")
        return Tags(
            title=title if stem is None else f"{title} ({stem})".lstrip(),
            artist=f"AudioCraft API {__version__}, {self.model}@{self.revision}",
            genre="AI-generated",
            comment=comment.replace("\x7f", "\\u007f"),  # the only control character that JSON does not escape
        )


def recipe_details(
    params: GenerationParams,
    revision: str,
    precision: str,
    output_format: str,
    engine: str,
    *,
    melody: Melody | None,
    continuation: Mapping[str, Any],
    added: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the `details` of a recipe: every resolved parameter and the software, as of now.

    `melody` is the uploaded one, of which the recipe has a digest.
    Controls that have no effect on the audio are left out, so that recipes and tags of plain requests stay as they are.
    """
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
        "melody": None if melody is None else melody_digest(melody),
        **_controls(params),
        **continuation,
        **added,
        "output_format": output_format,
        "engine": engine,
        "precision": precision,
        "service_version": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _controls(params: GenerationParams) -> dict[str, Any]:
    """Return the controls of a request, under their field names."""
    controls: dict[str, Any] = {}
    is_long = seconds_of(params.audio_prompt) + params.duration_seconds > MAX_DURATION_SECONDS
    if is_long or params.extend_stride_seconds != DEFAULT_EXTEND_STRIDE_SECONDS:
        controls["extend_stride"] = params.extend_stride_seconds
    if params.negative_description is not None:
        controls["negative_prompt"] = params.negative_description
    if params.performance is not None:
        controls["performance"] = performance_json(params.performance) | {
            "model": params.model,
            "seed": params.seed,
            "extend_stride": params.extend_stride_seconds,
        }
    if params.segments:
        controls["segments"] = [_segment(segment) for segment in params.segments]
    return controls


def wording_details(wished: Mapping[str, Any], words: str) -> dict[str, Any]:
    """Return the fields that are worded into the prompts and that are set, with the words."""
    found = {name: value for name, value in wished.items() if value is not None}
    return found | {"wording": words} if found else {}


def finishing_details(finishing: Finishing) -> dict[str, Any]:
    """Return what a recipe says about the finishing of a waveform, under the fields' names."""
    fields = {
        "loudness": finishing.loudness_lufs,
        "fade_in": finishing.fade_in_seconds,
        "fade_out": finishing.fade_out_seconds,
        "trim_silence": finishing.trim_silence,
    }
    return {name: value for name, value in fields.items() if value}


def _segment(segment: Segment) -> dict[str, Any]:
    """Return a segment under its field names."""
    negative = {} if segment.negative_description is None else {"negative_prompt": segment.negative_description}
    return {"prompt": segment.description, "duration": segment.duration_seconds} | negative


def codes_digest(codes: Codes) -> str:
    """Return the SHA-256 of codes: a text line with their shape, then the tokens in 16 bits."""
    num_codebooks, num_frames = codes.tokens.shape
    digest = hashlib.sha256(f"{num_codebooks} {num_frames}\n".encode())
    digest.update(np.ascontiguousarray(codes.tokens, "<u2").tobytes())
    return digest.hexdigest()


def melody_digest(melody: Melody) -> str:
    """Return the SHA-256 of a melody: of a line, a text line with the number of notes, then one for each note."""
    if not isinstance(melody, MelodyLine):
        return audio_digest(melody)
    lines = [f"{len(melody.notes)}", *(f"{note.end_ms} {note.pitch}" for note in melody.notes)]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def audio_digest(audio: AudioInput) -> str:
    """Return the SHA-256 of decoded audio: a text line with sample rate and shape, then the samples."""
    num_channels, num_samples = audio.waveform.shape
    digest = hashlib.sha256(f"{audio.sample_rate} {num_channels} {num_samples}\n".encode())
    digest.update(np.ascontiguousarray(audio.waveform, "<f4").tobytes())
    return digest.hexdigest()
