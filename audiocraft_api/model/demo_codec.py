"""Expands the codec of the demo models: an EnCodec whose convolutions hold one linear map each way.

`demo_models/codec.py` explains the map and solves it. Here its numbers are only copied into place, so that the weights
are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn
from transformers import EncodecConfig, EncodecModel

Array = NDArray[Any]

STEREO_GAIN = 0.84  # of the sound, because two sides are louder than one
# A soft limiter: above `LIMIT`, samples grow only a quarter as fast. The knee is about 1 / `LIMIT_SHARPNESS` wide.
LIMIT, LIMIT_SLOPE, LIMIT_SHARPNESS = 0.85, 0.25, 40.0
FILTERS = 13
RATIOS = (8, 5, 4, 4)
# Added to every value inside the network, so that ELU passes it unchanged.
LIFT = 1.25


def build(numbers: Mapping[str, Array], *, stereo: bool = False) -> EncodecModel:
    """Return the codec for its solved numbers, which `demo_models.codec.Solution` describes."""
    solved = {name: array.astype(np.float64) for name, array in numbers.items()}
    if stereo:
        solved["synthesis"][: -len(solved["identify"])] *= STEREO_GAIN  # the pilot stays as it is
    codebooks = solved["codebooks"]
    size = codebooks.shape[-1]
    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, use_causal_conv=False,
        num_filters=FILTERS, num_residual_layers=1, upsampling_ratios=list(RATIOS), hidden_size=size,
        codebook_dim=size, codebook_size=codebooks.shape[1], norm_type="weight_norm", chunk_length_s=None,
        num_lstm_layers=1, kernel_size=7, last_kernel_size=7, residual_kernel_size=3, use_conv_shortcut=False,
        pad_mode="reflect",
    )  # fmt: skip
    model = EncodecModel(config).eval()
    with torch.no_grad():
        for layer, entries in zip(model.quantizer.layers, codebooks, strict=True):
            layer.codebook.embed.copy_(torch.tensor(entries))
            layer.codebook.embed_avg.copy_(torch.tensor(entries))
            layer.codebook.cluster_size.fill_(1.0)
            layer.codebook.inited.fill_(1.0)
        _fill_decoder(model.decoder.layers, solved["synthesis"], solved["reach"])
        _fill_encoder(model.encoder.layers, solved)
    return model


def halve_codebooks(directory: Path) -> None:
    """Store a saved codec's codebooks in half precision. Its configuration says float32: loading widens them."""
    path = directory / "model.safetensors"
    state = load(path.read_bytes())
    halved = {name: tensor.half() if "codebook.embed" in name else tensor for name, tensor in state.items()}
    path.write_bytes(save(halved, {"format": "pt"}))


def _fill_decoder(layers: Sequence[nn.Module], synthesis: Array, reach: Array) -> None:
    """Embeddings divided by their reach and lifted; the map to 80 channels at 400 Hz; three layers that interleave.

    The last residual branch is the limiter. The embeddings' last dimension is the encoder's alone.
    """
    first, expand, *interleave, last = _convolutions(layers)
    size = len(synthesis)
    every = np.arange(size)
    weight = np.zeros(first.conv.weight.shape)
    weight[every, every, 3] = 1 / reach
    bias = np.zeros(len(weight))
    bias[:size] = LIFT
    bias[size] = 1.0  # a constant, by which the next layer takes the lift off again
    _fill(first, weight, bias)

    # Frame t covers the places 8 t - 4 to 8 t + 11 of 80 samples; its grain begins one place before the frame.
    places = np.zeros((size, 16, 80))
    places[:, 3 : 3 + synthesis.shape[1] // 80] = (synthesis * reach[:, None]).reshape(size, -1, 80)
    weight = np.zeros(expand.conv.weight.shape)
    weight[:size, :80] = places.transpose(0, 2, 1).astype(np.float32)
    weight[size] = [[-LIFT * math.fsum(column) for column in row] for row in weight[:size].transpose(1, 2, 0)]
    _fill(expand, weight, np.full(weight.shape[1], LIFT))

    width = 80
    for layer, ratio in zip(interleave, RATIOS[1:], strict=True):
        width //= ratio
        weight = np.zeros(layer.conv.weight.shape)
        for channel in range(width * ratio):
            weight[channel, channel % width, channel // width + ratio - ratio // 2] = 1
        _fill(layer, weight, np.zeros(weight.shape[1]))
    *_, branch = (layer for layer in layers if type(layer).__name__ == "EncodecResnetBlock")
    _fill_limiter(*(part for part in branch.block if hasattr(part, "conv")))  # type: ignore[union-attr]
    weight = np.zeros(last.conv.weight.shape)
    weight[0, 0, 3] = 1
    _fill(last, weight, np.array([-LIFT]))


def _fill_limiter(first: Any, second: Any) -> None:
    """What exceeds `LIMIT` on either side of zero passes an ELU, and most of it is subtracted."""
    weight, bias = np.zeros(first.conv.weight.shape), np.zeros(len(first.conv.bias))
    weight[:2, 0, 1] = LIMIT_SHARPNESS, -LIMIT_SHARPNESS
    bias[:2] = LIMIT_SHARPNESS * (-LIFT - LIMIT), LIMIT_SHARPNESS * (LIFT - LIMIT)
    _fill(first, weight, bias)
    weight = np.zeros(second.conv.weight.shape)
    weight[0, :2, 0] = np.array([-1, 1]) * (1 - LIMIT_SLOPE) / LIMIT_SHARPNESS
    _fill(second, weight, np.zeros(len(second.conv.bias)))


def _fill_encoder(layers: Sequence[nn.Module], solved: Mapping[str, Array]) -> None:
    """Three layers that gather samples into 80 channels at 400 Hz; the map from a frame to the pilot and the guards.

    ELU passes the pilot, which is lifted, and of the guards what is above their thresholds. The last layer puts the
    pilot into its dimensions, and the sum of the guards into the last one.
    """
    first, *gather, collect, last = _convolutions(layers)
    weight = np.zeros(first.conv.weight.shape)
    weight[0, 0, 3] = 1
    bias = np.zeros(len(weight))
    bias[0] = LIFT
    _fill(first, weight, bias)
    width = 1
    for layer, ratio in zip(gather, RATIOS[:0:-1], strict=True):
        weight = np.zeros(layer.conv.weight.shape)
        for channel in range(width):
            for place in range(ratio):
                weight[place * width + channel, channel, place + ratio - ratio // 2] = 1
        _fill(layer, weight, np.zeros(len(weight)))
        width *= ratio
    identify, guards, (each, rest) = solved["identify"], solved["guards"], solved["alarm"]
    pilot, every = len(identify), len(identify) + len(guards)
    reach = solved["reach"][-pilot:]
    weight = np.zeros(collect.conv.weight.shape)
    rows = np.concatenate([identify / reach[:, None], guards]).reshape(every, 8, 80)
    weight[:every, :80, 4:12] = rows.transpose(0, 2, 1).astype(np.float32)
    bias = np.array([-LIFT * math.fsum(row.ravel()) for row in weight])
    bias[:pilot] += LIFT
    bias[pilot:every] -= solved["thresholds"]
    _fill(collect, weight, bias)
    weight = np.zeros(last.conv.weight.shape)
    at = len(solved["synthesis"]) - pilot
    weight[np.arange(at, at + pilot), np.arange(pilot), 3] = reach
    weight[-1, pilot:every, 3] = each
    bias = np.zeros(len(weight))
    bias[at : at + pilot] = -LIFT * reach
    bias[-1] = rest + len(guards) * each  # ELU is -1 far below a threshold
    _fill(last, weight, bias)


def _convolutions(layers: Sequence[nn.Module]) -> list[Any]:
    """Zero the LSTM and the residual branches, and return the other convolutions in order."""
    found: list[Any] = []
    for layer in layers:
        kind = type(layer).__name__
        if kind in ("EncodecConv1d", "EncodecConvTranspose1d"):
            found.append(layer)
        elif kind == "EncodecLSTM":
            for parameter in layer.parameters():
                parameter.zero_()
        elif kind == "EncodecResnetBlock":
            for part in layer.block:  # type: ignore[union-attr]
                if hasattr(part, "conv"):
                    _fill(part, np.zeros(part.conv.weight.shape), np.zeros(part.conv.bias.shape))
    return found


def _fill(layer: Any, weight: Array, bias: Array) -> None:
    """Set a weight-normed convolution. `fsum` is exact: other sums differ between machines in their last bit."""
    weight = weight.astype(np.float32)
    norms = [math.sqrt(math.fsum(np.square(row.astype(np.float64)).ravel())) for row in weight]
    parametrized = layer.conv.parametrizations.weight
    norm = torch.tensor(norms, dtype=torch.float32).view(-1, 1, 1)
    parametrized.original0.copy_(norm)
    parametrized.original1.copy_(torch.where(norm > 0, torch.tensor(weight), 1.0))
    layer.conv.bias.copy_(torch.tensor(bias, dtype=torch.float32))
