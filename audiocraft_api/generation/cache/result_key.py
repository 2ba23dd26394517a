"""What makes two requests the same question: all that the audio's bytes depend on, as one digest. Never imports torch."""

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
from audiocraft_api.core.params import AudioInput
from audiocraft_api.engine.cpu.native.build import library_path
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.recipe import digest_of


def result_key(command: GenerateCommand, revision: str, config: Config) -> str:
    """Return the digest of a command, the revision of its model and what the server computes with.

    An owner's audio has keys of its own: nobody learns what somebody else has asked for.
    """
    asked: dict[str, object] = {field.name: getattr(command, field.name) for field in fields(command)}
    asked = {name: digest_of(value) if isinstance(value, AudioInput) else value for name, value in asked.items()}
    settings = {
        "engine": config.engine.kind,
        "precision": config.engine.precision,
        "device": config.models.device,
        "tag_prompts": config.results.tag_prompts,
    }
    # Escaped, so that every text has bytes, lone surrogates too; floats are written so that they read back the same.
    question = json.dumps([__version__, revision, settings, arithmetic(), asked], sort_keys=True)
    return hashlib.sha256(question.encode("ascii")).hexdigest()


@functools.cache
def arithmetic() -> tuple[str, ...]:
    """Return what rounding depends on: the native kernels (whose name tells the processor), torch, the GPUs."""
    library = library_path()
    found = [library.name, str(library.exists()), metadata.version("torch")]
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            found += [line for line in path.read_text().splitlines() if line.startswith("Model")]
    return tuple(found)
