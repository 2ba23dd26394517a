"""The recurrent layer of the native library against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from audiocraft_api.engine.codec.lstm import Lstm, LstmState
from audiocraft_api.engine.cpu.native.library import load_library
from audiocraft_api.engine.cpu.native_layers import NativeLayers


@pytest.fixture(scope="module")
def native() -> NativeLayers:
    library = load_library()
    assert library is not None
    return NativeLayers(library, 2)


def module_of(size: int, num_layers: int = 2, bias: bool = True) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(size, size, num_layers, bias=bias).eval()


def blocks_of(size: int, lengths: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(length, size, generator=generator) for length in lengths]


def advanced(lstm: Lstm, *feeds: list[Tensor]) -> tuple[list[Tensor], list[LstmState]]:
    """Feed several sequences block by block; return the outputs of each sequence and its last state."""
    states = [lstm.new_state() for _ in feeds[0]]
    with torch.inference_mode():
        outputs = [lstm.feed(states, blocks) for blocks in feeds]
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)], states


@pytest.mark.parametrize(("size", "num_layers", "bias"), [(16, 1, True), (48, 2, False), (272, 3, True)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0], ids=["near zero", "usual", "saturated"])
def test_outputs_and_states_match_the_reference(
    native: NativeLayers, size: int, num_layers: int, bias: bool, scale: float
) -> None:
    module = module_of(size, num_layers, bias)
    feeds = [blocks_of(size, lengths, scale) for lengths in ((5, 1, 9, 0, 3, 7), (2, 0, 4, 6, 1, 1))]
    outputs, states = advanced(Lstm(module, native), *feeds)
    # float64 shows that the error is that of rounding, however small the values are.
    exact_feeds = [[block.double() for block in blocks] for blocks in feeds]
    expected, exact_states = advanced(Lstm(module_of(size, num_layers, bias).double(), None), *exact_feeds)
    for output, exact in zip(outputs, expected, strict=True):
        assert (output - exact).norm() <= 1e-6 * exact.norm()
    for state, exact_state in zip(states, exact_states, strict=True):
        assert (state.hidden - exact_state.hidden).norm() <= 2e-6 * exact_state.hidden.norm()
        assert (state.cell - exact_state.cell).norm() <= 2e-6 * exact_state.cell.norm()


def test_a_layer_of_another_size_is_pytorchs(native: NativeLayers) -> None:
    assert native.lstm(module_of(24)) is None
    outputs, _ = advanced(Lstm(module_of(24), native), blocks_of(24, (3, 5)))
    expected, _ = advanced(Lstm(module_of(24), None), blocks_of(24, (3, 5)))
    assert all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))
