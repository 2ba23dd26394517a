"""A small checkpoint of random weights in AudioGen's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import shapes

NAME = "tiny-audiogen"
TEXT_ENCODER = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}


def write(directory: Path, **changes: Any) -> Path:
    """Write the checkpoint into `directory`, and return a models file that declares it, with `changes`."""
    shapes.write_audiogen(
        directory / NAME, TEXT_ENCODER, num_filters=4, dimension=16, dim=64, num_heads=2, num_layers=2
    )
    return declare(directory, **changes)


def declare(directory: Path, **changes: Any) -> Path:
    """Write a models file next to the checkpoint."""
    path = directory / "models.json"
    path.write_text(json.dumps({NAME: {"checkpoint": str(directory / NAME), **shapes.AUDIOGEN, **changes}}))
    return path
