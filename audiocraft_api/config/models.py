"""Settings: where models come from, where they run, and when they are loaded and unloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import CommaList, Section


class ModelSettings(Section):
    """Where models come from, where they run, and when they are loaded and unloaded."""

    checkpoints_dir: Path = Field(
        Path("checkpoints"),
        description="Directory of local checkpoints. A subdirectory with a model's name takes precedence over the hub.",
    )
    models_file: Path | None = Field(
        None, description="JSON file that adds models or replaces the checkpoints of built-in models."
    )
    offline: bool = Field(False, description="Never contact the model hub.")
    allow_non_commercial: bool = Field(
        True,
        description="Serve models whose license forbids commercial use, which includes the released MusicGen weights.",
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="Device that models run on. `auto` selects the first available of CUDA, MPS and CPU."
    )
    preload: CommaList = Field(
        (),
        alias="preload_models",
        description="Comma-separated list of models to load and warm up in the background at startup. `/ready` "
        "returns 503 until they are loaded.",
    )
    import_at_start: bool = Field(
        True,
        description="Import PyTorch and audiocraft in the background when the server (or a Celery worker) starts, so "
        "that the first request does not wait for them. A server that uses Celery workers imports neither.",
    )
    idle_seconds: float = Field(
        0.0,
        alias="model_idle_seconds",
        ge=0,
        description="Unload a model that has not been used for this long. 0: never.",
    )
    memory_bytes: int = Field(
        0,
        alias="model_memory_bytes",
        ge=0,
        description="Unload the least recently used models when all weights together exceed this size. 0: no limit.",
    )
    separator: str = Field(
        "adefossez/HTDemucs",
        min_length=1,
        description="Hub ID or local directory of the HTDemucs that separates audio into stems. Demo models have a "
        "stand-in, which is built on this machine.",
    )
    max_separations: int = Field(
        1,
        ge=1,
        le=64,
        description="Maximum number of separations into stems at the same time. Further ones wait. Each takes about "
        "1 GB of memory.",
    )
