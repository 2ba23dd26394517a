"""The key of a result: a digest of everything that the bytes of the audio depend on. Never imports torch."""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import suppress
from dataclasses import fields
from importlib import metadata
from pathlib import Path

from audiocraft_api import __version__
from audiocraft_api.config import Config
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.params import AudioInput
from audiocraft_api.engine.cpu.native.build import is_available, library_path
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.performance_recipe import performance_json
from audiocraft_api.generation.recipe import audio_digest, codes_digest, melody_digest


def result_key(command: GenerateCommand, revision: str, config: Config) -> str:
    """Return the digest of a command, its model's revision, and the software and hardware of the server.

    The command includes the owner of the audio, so no caller can find out what another owner has requested.
    """
    requested: dict[str, object] = {field.name: getattr(command, field.name) for field in fields(command)}
    requested = {name: _digests(value) for name, value in requested.items()}
    if command.performance is not None:
        requested["performance"] = performance_json(command.performance)
    settings = {
        "engine": config.engine.kind,
        "precision": config.engine.precision,
        "device": config.models.device,
        "separator": config.models.separator,
        "tag_prompts": config.results.tag_prompts,
    }
    # JSON escapes every character, including lone surrogates, and writes floats without loss.
    text = json.dumps([__version__, revision, settings, arithmetic(), requested], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _digests(value: object) -> object:
    """Return the digests of a melody or of audio; any other value as it is."""
    if isinstance(value, AudioInput):
        return [audio_digest(value)] + ([codes_digest(value.codes)] if value.codes else [])
    return melody_digest(value) if isinstance(value, MelodyLine) else value


@functools.cache
def arithmetic() -> tuple[str, ...]:
    """Return what rounding depends on: the native kernels (their file name includes the processor), torch, the GPUs."""
    found = [library_path().name, str(is_available()), metadata.version("torch")]
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            found += [line for line in path.read_text().splitlines() if line.startswith("Model")]
    return tuple(found)
