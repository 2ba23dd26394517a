"""What the tests of the demo models share: the grains, the solved codec, and a language model of random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo_models import codec, export, synthesizer
from demo_models.composer import Codes, Facts, compose
from demo_models.language_model import LanguageModel

WALTZ = Facts(groove=10, tempo=8, drums=False, key=0, loop=1, chords="organ", bass=None, lead="violin")
TECHNO = Facts(groove=3, tempo=6, drums=True, key=3, loop=0, chords="pad", bass="synth", lead="synth")
LOFI = Facts(groove=0, tempo=10, drums=True, key=4, loop=2, chords="keys", bass="finger", lead="piano")


@pytest.fixture(scope="session")
def pieces() -> list[Codes]:
    """Three pieces of four bars: a waltz without drums and bass, techno, and lo-fi."""
    return [compose(np.random.default_rng(1), facts, 4) for facts in (WALTZ, TECHNO, LOFI)]


@pytest.fixture(scope="session")
def grains() -> synthesizer.Grains:
    return synthesizer.make_grains()


@pytest.fixture(scope="session")
def solution(grains: synthesizer.Grains) -> codec.Solution:
    return codec.solve(grains)


@pytest.fixture(scope="session")
def untrained() -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel().eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, solution: codec.Solution, untrained: LanguageModel) -> Path:
    """A directory of checkpoints with one named `demo`: the solved codec and the untrained language model."""
    from audiocraft_api.model import demo

    directory = tmp_path_factory.mktemp("checkpoints")
    export.write(directory / "codec.safetensors", dataclasses.asdict(solution))
    export.write(directory / "demo.safetensors", export.language_model_numbers(untrained))
    (directory / "demo").mkdir()
    demo.write_trained(directory / "demo", directory / "codec.safetensors", directory / "demo.safetensors")
    return directory


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> Any:
    """The checkpoint, loaded by the service's own code."""
    from demo_models import generation

    return generation.load(checkpoint, "demo")
