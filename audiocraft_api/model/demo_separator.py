"""The source separator of demo models: a small HTDemucs that splits by frequency, with weights that are computed.

It separates well enough to try `stems` without a download: low notes from high-pitched noise, and both from the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from demucs.htdemucs import HTDemucs
from safetensors.torch import save
from torch import Tensor, nn

ARGUMENTS: dict[str, Any] = {
    "sources": ["drums", "bass", "other", "vocals"], "audio_channels": 2, "channels": 48, "depth": 1, "t_layers": 0,
    "channels_time": 1, "dconv_mode": 0, "context": 0, "freq_emb": 0.2, "emb_scale": 10, "samplerate": 44_100,
    "segment": 3,
}  # fmt: skip

_OPEN = 30.0  # the input of a sigmoid that is 1
_BASS_HERTZ, _DRUMS_HERTZ = 200.0, 5000.0  # bass is below, drums are above
_BASS_WIDTH, _DRUMS_WIDTH = 20.0, 250.0  # of the transitions
# The real and imaginary parts of two channels, in each of the four frequency bins of a position.
_NUM_VALUES = 16


def build() -> HTDemucs:
    """Return the separator.

    The encoder passes on all values of a position: gelu(x) - gelu(-x) is x. The frequency embedding has the gates of
    bass and drums. Vocals are silent, because the demo models have none, and `other` is what is left.
    """
    model = HTDemucs(**ARGUMENTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        encoder, decoder = model.encoder[0], model.decoder[0]
        for channel in range(4):
            for tap in range(4):  # of those in the middle of the kernel, which no other position shares
                value = 4 * channel + tap
                encoder.conv.weight[value, channel, 2 + tap] = 1.0
                encoder.conv.weight[_NUM_VALUES + value, channel, 2 + tap] = -1.0
                _decode(decoder.conv_tr.weight, value, channel, tap)
        _fill_rewrites(encoder.rewrite, decoder.rewrite)
        hertz = (torch.arange(512) * 4 + 1.5) * ARGUMENTS["samplerate"] / 4096
        scale = ARGUMENTS["freq_emb"] * ARGUMENTS["emb_scale"]
        model.freq_emb.embedding.weight[:, _NUM_VALUES] = (_BASS_HERTZ - hertz) / _BASS_WIDTH / scale
        model.freq_emb.embedding.weight[:, _NUM_VALUES + 1] = (hertz - _DRUMS_HERTZ) / _DRUMS_WIDTH / scale
    return model


def _fill_rewrites(encoder: Any, decoder: Any) -> None:
    """Fill the two gated layers; the decoder reads the encoder's output twice, once as the skip connection."""
    num_channels = ARGUMENTS["channels"]
    encoder.bias[num_channels:] = _OPEN
    decoder.bias[num_channels:] = _OPEN
    for value in range(_NUM_VALUES):
        encoder.weight[value, value] = 1.0
        encoder.weight[value, _NUM_VALUES + value] = -1.0
        for group in range(3):  # all, bass, drums
            row = group * _NUM_VALUES + value
            decoder.weight[row, value] = 0.5
            if group:
                decoder.weight[num_channels + row, _NUM_VALUES + group - 1] = 0.5
                decoder.bias[num_channels + row] = 0.0


def _decode(weight: Tensor, value: int, channel: int, tap: int) -> None:
    """Fill the last layer for one value of a position: to each source, from all, bass and drums."""
    sources = ARGUMENTS["sources"]
    groups = {"drums": (0.0, 0.0, 1.0), "bass": (0.0, 1.0, 0.0), "other": (1.0, -1.0, -1.0)}
    for source, shares in groups.items():
        for group, share in enumerate(shares):
            weight[group * _NUM_VALUES + value, 4 * sources.index(source) + channel, 2 + tap] = share


def write(_name: str, directory: Path) -> None:
    """Write the separator in demucs' hub layout."""
    save_separator(directory, build(), ARGUMENTS)


def save_separator(directory: Path, model: nn.Module, arguments: dict[str, Any]) -> None:
    """Write a separator of one of demucs' classes in demucs' hub layout. The bytes are the same each time."""
    klass = f"{type(model).__module__}.{type(model).__name__}"
    metadata = {"klass": klass, "args": "[]", "kwargs": json.dumps(arguments)}
    content = save(model.state_dict(), metadata)
    # safetensors writes the metadata in an order that differs between runs: sort it.
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    (directory / "demo.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    (directory / "htdemucs.yaml").write_text("models: [demo]\n")
