"""Give audiocraft's chroma conditioner its source separator from where the other files come from, safely.

The conditioner asks demucs for `htdemucs`, which downloads it, as a pickle if need be. Here it gets the same demucs
classes with weights that were looked up like all others.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demucs.apply
import demucs.pretrained
import yaml
from demucs.hf import load_safetensors_model
from safetensors import safe_open

from audiocraft_api.model import hub
from audiocraft_api.model.hub import Hub

RELEASED_ID = "adefossez/HTDemucs"  # demucs.hf: where demucs itself takes `htdemucs` from

# A weights file names the class to build; only these are taken.
_CLASSES = frozenset({"demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs"})
_lock = threading.RLock()


def load(directory: Path) -> Any:
    """Return the bag of separators of a repository in demucs' hub layout. Raises ValueError for any other files."""
    bag = yaml.safe_load((directory / "htdemucs.yaml").read_text())
    models = []
    for signature in bag["models"]:
        path = directory / f"{signature}.safetensors"
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("klass") not in _CLASSES or "structure" in metadata:
            raise ValueError(f"{path.name} is not a separator of demucs")
        models.append(load_safetensors_model(path))
    return demucs.apply.BagOfModels(models, bag.get("weights"), bag.get("segment")).eval()


@contextmanager
def provided_by(files: Hub, repository: str) -> Iterator[None]:
    """Let demucs' `get_model`, which the conditioner calls, return the separator of `repository`."""

    def get_model(_name: str) -> Any:
        return load(files.snapshot(repository, hub.SEPARATOR))

    with _replaced(demucs.pretrained, "get_model", get_model):
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Let a separation shift its input always by the same time: demucs draws it from Python's global generator."""
    with _replaced(demucs.apply, "random", _SameEachTime()):
        yield


class _SameEachTime:
    """Stands in for the module `random`: its state does not go on from one window's separation to the next."""

    def randint(self, least: int, most: int) -> int:
        return random.Random(0).randint(least, most)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    with _lock:
        original = getattr(module, name)
        setattr(module, name, value)
        try:
            yield
        finally:
            setattr(module, name, original)
