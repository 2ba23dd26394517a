"""The native decoder's integers: the same roundings in float32 give the same logits, and outliers do not spoil them."""

from __future__ import annotations

import pytest

from audiocraft_api.engine.cpu.native_backend import Format, NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend
from audiocraft_api.engine.weights import DecoderWeights
from support.random_weights import random_weights, relative_error, row_logits, some_context, some_tokens, with_outliers
from support.rounded_twin import RoundedTwin, rounded_weights

CAPACITY = 64


def runner(weights: DecoderWeights, weight_format: Format) -> NativeBackend:
    return NativeBackend(weights, num_slots=1, capacity=CAPACITY, weight_format=weight_format, num_threads=2)


@pytest.mark.parametrize("sizes", [(128, 2), (192, 6), (64, 4)], ids=["64-wide heads", "32-wide", "16-wide"])
@pytest.mark.parametrize("factor", [1, 5, 40])
@pytest.mark.parametrize(("weight_format", "bits"), [("int8", 8), ("int6", 6)])
def test_a_layer_of_integers_is_that_of_the_same_integers_in_float(
    weight_format: Format, bits: int, factor: float, sizes: tuple[int, int]
) -> None:
    weights, tokens = with_outliers(random_weights(*sizes, num_layers=1), factor), some_tokens(60)
    context = some_context(weights.dim, 9)
    expected = row_logits(RoundedTwin(weights, bits, CAPACITY), context, tokens)
    found = row_logits(runner(weights, weight_format), context, tokens)
    errors = sorted(relative_error(*pair) for pair in zip(found, expected, strict=True))
    # In many steps some number lies at the border of two integers, and float32 decides.
    assert errors[6] < 2e-4
    assert errors[-1] < 3e-2


# Over layers such borders become many. With bytes alone an outlier of 40 would make it 5e-2.
@pytest.mark.parametrize("factor", [1, 5, 40])
@pytest.mark.parametrize(("weight_format", "bits", "bound"), [("int8", 8, 5e-3), ("int6", 6, 2e-2)])
def test_integers_are_those_of_the_same_integers_in_float(
    weight_format: Format, bits: int, factor: float, bound: float
) -> None:
    weights, tokens = with_outliers(random_weights(), factor), some_tokens(30)
    context = some_context(weights.dim, 9)
    expected = row_logits(RoundedTwin(weights, bits, CAPACITY), context, tokens)
    assert relative_error(row_logits(runner(weights, weight_format), context, tokens), expected) < bound


def with_loud_keys(weights: DecoderWeights, factor: float) -> DecoderWeights:
    """Let one dimension of every head's keys stand out, as some do in trained models, and change no score."""
    head_dim = weights.dim // weights.num_heads
    for layer in weights.layers:
        query, key = layer.qkv.view(3, weights.num_heads, head_dim, -1)[:2]
        query[:, 3] /= factor
        key[:, 3] *= factor
    return weights


# Without the rotation of keys, a dimension that is a hundred times the others would make these 0.05 and 0.11.
@pytest.mark.parametrize(("weight_format", "bits", "bound"), [("int8", 8, 1.5e-2), ("int6", 6, 4.5e-2)])
def test_a_dimension_that_stands_out_leaves_the_other_keys_their_bits(
    weight_format: Format, bits: int, bound: float
) -> None:
    weights, tokens = with_loud_keys(random_weights(), 100), some_tokens(30)
    twin = TorchBackend(rounded_weights(weights, bits), num_slots=1, capacity=CAPACITY)
    expected = row_logits(twin, None, tokens)
    assert relative_error(row_logits(runner(weights, weight_format), None, tokens), expected) < bound
