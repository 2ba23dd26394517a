"""The rounding in training is the rounding of the service's int6 decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from demo_models.rounding import round_keys, round_vectors, round_weights
from support.rounded_reference import hadamard_transformed, rounded, rounded_vectors


def differs_little(found: Tensor, expected: Tensor, exact: Tensor) -> bool:
    """The engine also rounds the scales, which moves the numbers by less than the rounding does."""
    return bool((found - expected).square().mean() < 0.2 * (exact - expected).square().mean())


def test_weights_are_rounded_as_the_engine_does() -> None:
    torch.manual_seed(0)
    weights = torch.randn(64, 512)
    assert differs_little(round_weights(weights), rounded(weights, 6), weights)


def test_keys_and_values_are_rounded_as_the_engine_does() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2, 4, 50, 32)
    assert differs_little(round_vectors(vectors), rounded_vectors(vectors, 6), vectors)
    rotated = hadamard_transformed(rounded_vectors(hadamard_transformed(vectors), 6)) / 32
    assert differs_little(round_keys(vectors), rotated, vectors)
    assert not differs_little(round_vectors(vectors), rotated, vectors)


def test_gradients_pass_the_rounding_unchanged() -> None:
    weights = torch.randn(16, 128, requires_grad=True)
    scale = torch.randn(16, 128)
    (round_weights(weights) * scale).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(weights.grad, scale)  # type: ignore[arg-type]


def test_zeros_stay_zeros() -> None:
    assert torch.equal(round_vectors(torch.zeros(3, 128)), torch.zeros(3, 128))
