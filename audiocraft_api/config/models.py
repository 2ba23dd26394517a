"""Settings of the models: where they come from, where they run, how long they stay."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import CommaList, Section


class ModelSettings(Section):
    """Settings of the models: where they come from, where they run, how long they stay."""

    checkpoints_dir: Path = Field(
        Path("checkpoints"),
        description="Directory with local checkpoints; a sub-directory of a model's name is used before the hub.",
    )
    models_file: Path | None = Field(
        None, description="JSON file with more models, or other checkpoints for the built-in names."
    )
    offline: bool = Field(False, description="Never reach for the model hub.")
    allow_non_commercial: bool = Field(
        True, description="Serve weights whose licence forbids commercial use (the released MusicGen weights)."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="Where models run; `auto` takes CUDA, then MPS, then CPU."
    )
    preload: CommaList = Field(
        (),
        alias="preload_models",
        description="Names, separated by commas, of models that are loaded and warmed at the start, in the background; "
        "`/ready` is 503 meanwhile.",
    )
    import_at_start: bool = Field(
        True,
        description="Import PyTorch and audiocraft in the background when the server (or a Celery worker) starts, so "
        "that the first request does not wait for them. A server whose tasks Celery workers run imports nothing.",
    )
    idle_seconds: float = Field(
        0.0, alias="model_idle_seconds", ge=0, description="Unload a model that nobody used for so long; 0 keeps it."
    )
    memory_bytes: int = Field(
        0,
        alias="model_memory_bytes",
        ge=0,
        description="Unload the least recently used models beyond this many bytes of weights; 0 is no budget.",
    )
