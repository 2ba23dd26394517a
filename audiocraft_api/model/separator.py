"""Loads the source separator of audiocraft's chroma conditioner from local files, and separates with it repeatably.

The conditioner itself requests `htdemucs` from demucs, which downloads it, possibly as a pickle. This module provides
the same demucs classes instead, with weights that `hub` finds like all others.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demucs.apply
import demucs.pretrained
import torch
import yaml
from demucs.audio import convert_audio
from demucs.hf import load_safetensors_model
from safetensors import safe_open
from torch import Tensor

from audiocraft_api.core.params import Waveform
from audiocraft_api.core.separation import STEMS
from audiocraft_api.model import hub
from audiocraft_api.model.hub import Hub

RELEASED_ID = "adefossez/HTDemucs"  # where demucs itself gets `htdemucs` from (demucs.hf)

# A weights file names the class to build; no other class is accepted.
_CLASSES = frozenset({"demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs"})
_MAX_SHIFT_SECONDS = 0.5  # demucs.apply.apply_model
_OVERLAP = 0.25  # of demucs' segments


def load(directory: Path) -> Any:
    """Return the separators in a directory of demucs' hub layout. Raises ValueError for any other files."""
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
    """Make demucs' `get_model`, which the conditioner's constructor calls, return the separator of `repository`.

    This replaces a function for the whole process: the caller must hold `checkpoint.BUILDING`.
    """
    original = demucs.pretrained.get_model
    demucs.pretrained.get_model = lambda _name: load(files.snapshot(repository, hub.SEPARATOR))
    try:
        yield
    finally:
        demucs.pretrained.get_model = original


def make_repeatable(conditioner: Any) -> None:
    """Make a `ChromaStemConditioner` return the same stems for the same waveform each time."""
    conditioner._get_stemmed_wav = functools.partial(_melody_stems, conditioner)


@torch.no_grad()
def _melody_stems(conditioner: Any, wav: Tensor, sample_rate: int) -> Tensor:
    """Do what `ChromaStemConditioner._get_stemmed_wav` does, but with a fixed time shift of demucs' input."""
    separator = conditioner.demucs
    with conditioner.autocast:
        wav = convert_audio(wav, sample_rate, separator.samplerate, separator.audio_channels)
        stems = _separate(separator, wav, conditioner.device)[:, conditioner.stem_indices]
        mixed: Tensor = convert_audio(stems.sum(1), separator.samplerate, conditioner.sample_rate, 1)
        return mixed


def _separate(separator: Any, mix: Tensor, device: Any) -> Tensor:
    """Separate as `apply_model(…, shifts=1)` does, which draws the shift from Python's global random generator."""
    max_shift = int(_MAX_SHIFT_SECONDS * separator.samplerate)
    shift = random.Random(0).randint(0, max_shift)
    length = mix.shape[-1]
    padded = demucs.apply.tensor_chunk(mix).padded(length + 2 * max_shift)
    shifted = demucs.apply.TensorChunk(padded, shift, length + max_shift - shift)
    stems: Tensor = demucs.apply.apply_model(separator, shifted, shifts=0, device=device)
    return stems[..., max_shift - shift :]


@torch.no_grad()
def stems_of(
    separator: Any, device: Any, waveform: Waveform, sample_rate: int, check: Callable[[float], None]
) -> dict[str, Waveform]:
    """Return the stems [C, T] of a mix [C, T] by name. What the separator leaves out is added to `other`.

    `check` is called before each segment of a few seconds with the part that is done; what it raises ends the
    separation. Unlike a melody, the mix is not shifted in time.
    """
    num_channels, num_samples = waveform.shape
    mix = convert_audio(torch.from_numpy(waveform)[None], sample_rate, separator.samplerate, separator.audio_channels)
    num_segments = sum(_num_segments(model, mix.shape[-1]) for model in separator.models)
    num_begun = 0

    def at_segment(event: dict[str, Any]) -> None:
        nonlocal num_begun
        if event["state"] == "start":
            check(num_begun / num_segments)
            num_begun += 1

    found = demucs.apply.apply_model(
        separator, mix, shifts=0, overlap=_OVERLAP, device=device, callback=at_segment
    )  # [1, S, C, T]
    stems: dict[str, Waveform] = {}
    for name in STEMS:
        stem = found[:, separator.sources.index(name)]
        stem = convert_audio(stem, separator.samplerate, sample_rate, num_channels)[0, :, :num_samples]
        stems[name] = torch.nn.functional.pad(stem, (0, num_samples - stem.shape[-1])).cpu().numpy()
    stems["other"] = waveform - sum(stems[name] for name in STEMS if name != "other")
    check(1.0)
    return stems


def _num_segments(model: Any, num_samples: int) -> int:
    """Return how many segments `apply_model` makes of a mix."""
    stride = int((1 - _OVERLAP) * int(model.samplerate * model.segment))
    return len(range(0, num_samples, stride))
