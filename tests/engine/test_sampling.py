"""Sampling against audiocraft's functions: the same tokens from the same generator, including ties and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from audiocraft_api.engine.sampling import apply_cfg, generator_noise, keep_top_k, keep_top_p, sample
from audiocraft_api.model import xformers_stub
from support.engines import params

CODEBOOKS, CARD = 4, 2048


@dataclass
class WithGenerator:
    """The part of a sequence that noise is drawn from."""

    generator: torch.Generator


def reference(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Do what `lm.py::_sample_next_token` does after guidance, with the global generator."""
    xformers_stub.install()
    from audiocraft.utils import utils

    probs = torch.softmax(logits[None] / temperature, dim=-1)
    if top_p > 0:
        return utils.sample_top_p(probs, p=top_p)[0, :, 0]
    if top_k > 0:
        return utils.sample_top_k(probs, k=top_k)[0, :, 0]
    return utils.multinomial(probs, num_samples=1)[0, :, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 250},
        {"top_k": 1},
        {"top_k": 0},
        {"top_k": CARD},
        {"top_k": 250, "top_p": 0.9},
        {"top_k": 0, "top_p": 1e-6},
        {"top_k": 0, "top_p": 1.0},
        {"temperature": 0.1},
        {"temperature": 2.0, "top_k": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["smooth", "tied", "peaked"])
def test_tokens_are_audiocrafts_for_the_same_seed(changes: dict[str, Any], kind: str) -> None:
    logits = torch.randn(20, CODEBOOKS, CARD, generator=torch.Generator().manual_seed(1))
    if kind == "tied":
        logits = logits.round()
    elif kind == "peaked":
        logits = logits * 20
    ours = params(**changes)
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)

    for step in logits:
        expected = reference(step, ours.temperature, ours.top_k, ours.top_p)
        assert torch.equal(sample(step, ours, generator_noise(WithGenerator(generator))), expected)


@pytest.mark.parametrize("changes", [{"use_sampling": False}, {"temperature": 0.0}], ids=str)
def test_greedy_selects_the_largest_and_does_not_use_the_generator(changes: dict[str, Any]) -> None:
    logits = torch.randn(CODEBOOKS, CARD)
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()

    assert torch.equal(
        sample(logits, params(**changes), generator_noise(WithGenerator(generator))), logits.argmax(dim=-1)
    )
    assert torch.equal(generator.get_state(), before)


def test_top_k_over_the_codebook_size_keeps_all_tokens() -> None:
    probs = torch.softmax(torch.randn(CODEBOOKS, 64), dim=-1)
    assert torch.allclose(keep_top_k(probs, 250), probs)


def test_ties_with_the_last_candidate_are_kept() -> None:
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert (keep_top_k(probs, 2) > 0).all()


def test_top_p_keeps_the_token_that_crosses_the_limit() -> None:
    kept = keep_top_p(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.7)
    assert torch.allclose(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


def test_guidance_is_audiocrafts_order_of_operations() -> None:
    cond, uncond = torch.randn(2, CODEBOOKS, CARD)
    assert torch.equal(apply_cfg(cond, uncond, 3.0), uncond + (cond - uncond) * 3.0)
    assert not torch.equal(apply_cfg(cond, uncond, 1.0), cond)
