"""The library's layers of a codec against PyTorch in float64; their bits depend on nothing but their own inputs."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiocraft_api.engine.cpu.native.library import load_library
from audiocraft_api.engine.cpu.native_layers import NativeLayers, Steps
from support.random_weights import relative_error


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    loaded = load_library()
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def native(library: ctypes.CDLL) -> NativeLayers:
    return NativeLayers(library, 2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "num_taps", "dilation"),
    [(16, 16, 1, 1), (1, 5, 3, 2), (40, 300, 3, 1), (33, 260, 7, 4), (70, 1, 2, 1), (5, 3, 300, 1)],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_convolution_matches_the_reference_for_every_length(
    native: NativeLayers, num_outputs: int, num_inputs: int, num_taps: int, dilation: int, has_bias: bool
) -> None:
    weights, bias = noise(num_taps, num_outputs, num_inputs), noise(num_outputs) if has_bias else None
    convolution = native.convolution(list(weights), bias, dilation)
    span = (num_taps - 1) * dilation
    whole = noise(span + 500, num_inputs, seed=1)
    kernel = weights.permute(1, 2, 0).double()
    expected = F.conv1d(whole.T[None].double(), kernel, None if bias is None else bias.double(), dilation=dilation)[0].T
    for length in (*range(1, 30), 96, 97, 193, 500):
        y = convolution(whole[: span + length])
        assert y.shape == (length, num_outputs)
        assert relative_error(y, expected[:length]) < 1e-6


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_row_of_a_convolution_has_the_same_bits_in_every_block(library: ctypes.CDLL, num_threads: int) -> None:
    weights = list(noise(3, 40, 300))
    x = noise(402, 300, seed=1)
    expected = NativeLayers(library, 1).convolution(weights)(x)
    convolution = NativeLayers(library, num_threads).convolution(weights)
    for length in (1, 2, 5, 11, 50, 97, 399):
        pieces = [convolution(x[begin : min(begin + length, 400) + 2].contiguous()) for begin in range(0, 400, length)]
        assert torch.equal(torch.cat(pieces), expected)


@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 1000])
def test_elu_matches_the_reference(native: NativeLayers, count: int) -> None:
    x = torch.cat((noise(count) * 3, torch.tensor([0.0, -0.0, -1e-8, 1e-8, -100.0, 100.0, -3e38, 3e38])))[-count:]
    y, guard = torch.full((2, count + 8), 7.0)[:, : count + 8]
    native.elu(x, y[:count])
    assert (y[:count] - F.elu(x.double())).abs().max() <= 1.2e-7
    assert torch.equal(y[count:], guard[count:]), "nothing beyond the output was written"
    assert torch.equal(y[:count][x > 0], x[x > 0])


def module_of(size: int) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(size, size).eval()


@pytest.mark.parametrize("num_neighbors", range(1, 10))
def test_a_sequences_bits_depend_on_neither_its_neighbors_nor_the_threads(
    library: ctypes.CDLL, num_neighbors: int
) -> None:
    module, size = module_of(64), 64
    gates = noise(12, 4 * size)
    results = []
    for num_threads, neighbors in ((1, 0), (3, num_neighbors)):
        lstm = NativeLayers(library, num_threads).lstm(module)
        assert lstm is not None
        sequences = [Steps(noise(3 * length, 4 * size), *noise(2, size)) for length in range(neighbors)]
        place = neighbors // 2
        sequences.insert(place, Steps(gates, *torch.zeros(2, size)))
        results.append(lstm.advance(0, sequences)[place])
    assert torch.equal(*results)


def test_an_error_of_the_library_is_raised(native: NativeLayers) -> None:
    lstm = native.lstm(module_of(16))
    assert lstm is not None
    with pytest.raises(RuntimeError, match="native codec failed"):
        lstm.advance(7, [Steps(torch.zeros(1, 64), *torch.zeros(2, 16))])
