"""The source separator of melody models: the same stems each time, as demucs computes them with the same time shift."""

from __future__ import annotations

import random
from pathlib import Path

import demucs.apply
import pytest
import torch

from support.engines import demo_model


def test_separation_equals_audiocrafts_with_a_fixed_shift(
    demo_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioner = demo_model(demo_checkpoints, "demo-melody").lm.condition_provider.conditioners["self_wav"]
    waveform = torch.randn(1, 1, 32_000, generator=torch.Generator().manual_seed(1))
    stems = [conditioner._get_stemmed_wav(waveform, 32_000) for _ in range(2)]
    assert torch.equal(*stems)

    monkeypatch.setattr(demucs.apply, "random", random.Random(0))
    assert torch.equal(stems[0], type(conditioner)._get_stemmed_wav(conditioner, waveform, 32_000))
