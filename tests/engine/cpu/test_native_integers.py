"""The native decoder's integer formats: float32 with the same rounding gives the same logits, even with outliers."""

from __future__ import annotations

import pytest

from audiocraft_api.engine.cpu.native_backend import Format, NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend
from audiocraft_api.engine.weights import DecoderWeights
from support.random_weights import random_weights, relative_error, row_logits, some_context, some_tokens, with_outliers
from support.rounded_reference import RoundedReference, rounded_weights

CAPACITY = 64


def make_backend(weights: DecoderWeights, weight_format: Format) -> NativeBackend:
    return NativeBackend(weights, num_slots=1, capacity=CAPACITY, weight_format=weight_format, num_threads=2)


@pytest.mark.parametrize("sizes", [(128, 2), (192, 6), (64, 4)], ids=["64-wide heads", "32-wide", "16-wide"])
@pytest.mark.parametrize("factor", [1, 5, 40])
@pytest.mark.parametrize(("weight_format", "bits"), [("int8", 8), ("int6", 6)])
def test_one_layer_matches_the_reference(
    weight_format: Format, bits: int, factor: float, sizes: tuple[int, int]
) -> None:
    weights, tokens = with_outliers(random_weights(*sizes, num_layers=1), factor), some_tokens(60)
    context = some_context(weights.dim, 9)
    expected = row_logits(RoundedReference(weights, bits, CAPACITY), context, tokens)
    found = row_logits(make_backend(weights, weight_format), context, tokens)
    errors = sorted(relative_error(*pair) for pair in zip(found, expected, strict=True))
    # In some steps a number lies halfway between two integers, and float32 rounding errors decide.
    assert errors[6] < 2e-4
    assert errors[-1] < 3e-2


# Over several layers, this becomes frequent. With one-byte activations alone, an outlier of 40 would give 5e-2.
@pytest.mark.parametrize("factor", [1, 5, 40])
@pytest.mark.parametrize(("weight_format", "bits", "bound"), [("int8", 8, 5e-3), ("int6", 6, 2e-2)])
def test_several_layers_match_the_reference(weight_format: Format, bits: int, factor: float, bound: float) -> None:
    weights, tokens = with_outliers(random_weights(), factor), some_tokens(30)
    context = some_context(weights.dim, 9)
    expected = row_logits(RoundedReference(weights, bits, CAPACITY), context, tokens)
    assert relative_error(row_logits(make_backend(weights, weight_format), context, tokens), expected) < bound


def with_key_outliers(weights: DecoderWeights, factor: float) -> DecoderWeights:
    """Scale up one dimension of every head's keys, as in trained models, and scale down the query: no score changes."""
    head_dim = weights.dim // weights.num_heads
    for layer in weights.layers:
        query, key = layer.qkv.view(3, weights.num_heads, head_dim, -1)[:2]
        query[:, 3] /= factor
        key[:, 3] *= factor
    return weights


# Without the rotation of keys, a dimension a hundred times larger than the others would give 0.05 and 0.11.
@pytest.mark.parametrize(("weight_format", "bits", "bound"), [("int8", 8, 1.5e-2), ("int6", 6, 4.5e-2)])
def test_a_key_dimension_with_outliers_does_not_degrade_the_others(
    weight_format: Format, bits: int, bound: float
) -> None:
    weights, tokens = with_key_outliers(random_weights(), 100), some_tokens(30)
    reference = TorchBackend(rounded_weights(weights, bits), num_slots=1, capacity=CAPACITY)
    expected = row_logits(reference, None, tokens)
    assert relative_error(row_logits(make_backend(weights, weight_format), None, tokens), expected) < bound
