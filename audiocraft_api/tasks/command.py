"""Encodes a `GenerateCommand` as the JSON and the audio of a stored task, and decodes it again. Knows no store."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.params import AudioInput, Codes, Segment
from audiocraft_api.core.performance import Performance
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.performance_recipe import performance_json, performance_of

# Stored with a command's fields: the trace of the request that submitted the task, and how its client sees the task.
TRACE, VIEW = "traceparent", "view"
# A melody of notes. Under a name of its own, so that the first release refuses such a task.
LINE = "melody_line"


def encode_command(command: GenerateCommand) -> tuple[dict[str, Any], bytes | None]:
    """Return a command's plain fields, ready for JSON, and its audio inputs, bit for bit, as an npz file."""
    plain: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for field in fields(command):
        value = getattr(command, field.name)
        if isinstance(value, AudioInput):
            arrays[field.name] = value.waveform
            arrays[f"{field.name}.sample_rate"] = np.int64(value.sample_rate)
            if value.codes is not None:
                arrays[f"{field.name}.tokens"] = value.codes.tokens
                arrays[f"{field.name}.codec"] = np.str_(value.codes.codec)
        elif isinstance(value, MelodyLine):
            plain[LINE] = value.to_json()
        elif isinstance(value, Performance):
            plain[field.name] = performance_json(value)
        elif not (field.metadata.get("added") and value == field.default):
            plain[field.name] = value
    if not arrays:
        return plain, None
    file = io.BytesIO()
    np.savez(file, **arrays)
    return plain, file.getvalue()


def decode_command(plain: dict[str, Any], audio: bytes | None) -> GenerateCommand:
    """Return the command that was encoded. Raises GenerationFailed when another release encoded it differently."""
    values = {name: value for name, value in plain.items() if name not in (TRACE, VIEW)}
    if audio is not None:
        with np.load(io.BytesIO(audio), allow_pickle=False) as arrays:
            for name in arrays.files:
                if "." not in name:
                    values[name] = _audio_input(arrays, name)
    if LINE in values:
        values["melody"] = MelodyLine.from_json(values.pop(LINE))
    if "segments" in values:
        values["segments"] = tuple(Segment(*segment) for segment in values["segments"])
    if "performance" in values:
        values["performance"] = performance_of(values["performance"])
    try:
        return GenerateCommand(**values)
    except TypeError as error:
        raise GenerationFailed(
            "The task was accepted by another release of this service, and this release cannot run it. Submit it again."
        ) from error


def _audio_input(arrays: Mapping[str, Any], name: str) -> AudioInput:
    codes = Codes(arrays[f"{name}.tokens"], str(arrays[f"{name}.codec"])) if f"{name}.codec" in arrays else None
    return AudioInput(arrays[name], int(arrays[f"{name}.sample_rate"]), codes)


def fingerprint(plain: dict[str, Any], audio: bytes | None, webhook_url: str | None) -> str:
    """Return a digest that is equal for two requests exactly when they request the same."""
    digest = hashlib.sha256(json.dumps([plain, webhook_url], sort_keys=True).encode())
    digest.update(audio or b"")
    return digest.hexdigest()
