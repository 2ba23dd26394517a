"""Words a tempo, a key and a time signature into descriptions, as MusicGen's training captions do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from audiocraft_api.core.params import GenerationParams

NAMES = {"bpm": "bpm", "key": "key", "time_signature": "time signature"}  # of the fields, in words


def wording(values: Mapping[str, object]) -> str:
    """Return the words for the fields that are set, such as `bpm: 120. key: C major`; "" for none.

    The form is audiocraft's (`music_dataset.py::augment_music_info_description`), which has no time signature.
    """
    return ". ".join(f"{name}: {values[field]}" for field, name in NAMES.items() if values.get(field) is not None)


def worded(text: str, words: str) -> str:
    """Return a text with words added to it."""
    return f"{text.rstrip('. ')}. {words}" if words else text


def with_wording(params: GenerationParams, words: str) -> GenerationParams:
    """Return parameters for the engine, with the words added to each description."""
    if not words:
        return params
    segments = tuple(part._replace(description=worded(part.description, words)) for part in params.segments)
    return replace(params, description=worded(params.description, words), segments=segments)
