"""Generates codes with the service's own loader and batching engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiocraft_api.config import load_config
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
from bench.engine import CodesCodec, LoadedModel
from demo_models.composer import Codes


def load(directory: Path, name: str) -> Any:
    """Load the checkpoint `name` in a directory of checkpoints, as the service does."""
    config = load_config({}, checkpoints_dir=directory, offline=True, device="cpu")
    catalog = Catalog(config)
    return load_model(catalog.get(name), catalog, config)


def generate(
    model: Any, captions: Sequence[str], seconds: float, precision: str = "int6", seed: int = 100, **parameters: Any
) -> list[Codes]:
    """Return the codes [K, T] of each caption, generated together; caption i has the seed `seed` + i."""
    config = load_config({}, precision=precision, max_batch_requests=16, max_waiting=len(captions)).engine
    engine = BatchingEngine(LoadedModel(model), config, codec_factory=lambda _: CodesCodec())  # type: ignore[arg-type]
    try:
        requests = [
            engine.submit(GenerationParams(model.spec.name, caption, seconds, seed + i, **parameters))
            for i, caption in enumerate(captions)
        ]
        return [request.result().waveform.astype(np.int64) for request in requests]
    finally:
        engine.close()
