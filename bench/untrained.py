"""Small untrained models of the released models' structure, from a fixed seed, for tests and benchmarks.

Every size that is part of the interface (number and size of codebooks, frame and sample rate, delays, chroma prefix) is
that of the released models; only widths and depths are small. `write` makes checkpoints that are named like the demo
models.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from demucs.demucs import Demucs
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel, T5Tokenizer

from audiocraft_api.model import demo, demo_separator

_TEXT_DIM = 32
_LM_DIM = 64
# Chosen so that decoded noise has a standard deviation near 0.15 and stays well inside -1 … 1, and so that the encoder
# spreads sound over the codebooks.
_CODEC_GAINS = {"encoder.layers.15": 4.0, "decoder.layers.15": 0.4}
_CODEBOOK_SCALE = 0.8
_WORDS = """a and the of with in for bpm fast slow soft warm dark bright calm happy sad epic lo fi beat beats drums bass
guitar piano synth strings violin cello flute organ choir voice ambient techno house jazz rock pop folk blues funk hip
hop classical electronic acoustic electric orchestral cinematic melody rhythm groove loop solo major minor song music"""


def write(name: str, directory: Path) -> None:
    """Write the checkpoint of a model that generates noise. `name` is that of a demo model."""
    from omegaconf import OmegaConf

    from audiocraft_api.model.checkpoint import build_language_model
    from audiocraft_api.model.hub import Hub

    hub = directory / "hub"
    words = tokenizer()
    encoder = text_encoder(len(words))
    demo.add_repository(hub, demo.TEXT_ENCODER_ID, words.save_pretrained, encoder.save_pretrained)
    demo.add_repository(hub, demo.CODEC_ID, codec().save_pretrained)
    if name == "demo-melody":
        demo.add_repository(hub, demo.SEPARATOR_ID, save_separator)
    shape = {"melody": name == "demo-melody", "stereo": name == "demo-stereo"}
    config = OmegaConf.create(demo.configuration(dim=_LM_DIM, num_heads=2, num_layers=2, **shape))
    lm = build_language_model(config, Hub(hub, offline=True), torch.device("cpu"))
    demo.save(directory, config, language_model_state(lm))


def draw(module: nn.Module, seed: int, gains: dict[str, float]) -> None:
    """Fill the parameters with seeded noise: 1/sqrt(fan-in) times the gain of the longest matching name part.

    Norm weights become 1, biases 0, the norms of normalized weights the gain. Parameters are drawn in the order of
    their names, so that the result does not depend on how a class is built.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            matches = [part for part in gains if part in name]
            gain = gains[max(matches, key=len)] if matches else 1.0
            if name.endswith("original0"):  # weight_norm: g of g * v / |v|
                parameter.fill_(gain)
            elif parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                fan_in = math.prod(parameter.shape[1:])
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / math.sqrt(fan_in))


def tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer with tokens for words about music and for single characters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -4.0) for word in dict.fromkeys(_WORDS.split())]
    pieces = [piece for piece, _ in words]
    characters = [(piece, -8.0) for piece in ["▁", *map(chr, range(33, 127))] if piece not in pieces]
    return T5Tokenizer(vocab=special + words + characters, extra_ids=0, additional_special_tokens=[])


def text_encoder(vocab_size: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocab_size, d_model=_TEXT_DIM, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    model = T5EncoderModel(config).eval()
    draw(model, 1, {"shared": math.sqrt(_TEXT_DIM)})
    return model


def codec() -> EncodecModel:
    """Return a codec of the released shape: mono, 32 kHz, 50 frames per second, 4 codebooks of 2048 entries."""
    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, use_causal_conv=False,
        num_filters=4, num_residual_layers=1, upsampling_ratios=[8, 5, 4, 4], hidden_size=32, codebook_dim=32,
        codebook_size=2048, norm_type="weight_norm", chunk_length_s=None, num_lstm_layers=2, kernel_size=7,
        last_kernel_size=7, residual_kernel_size=3, use_conv_shortcut=False, pad_mode="reflect",
    )  # fmt: skip
    model = EncodecModel(config).eval()
    draw(model, 2, _CODEC_GAINS)
    generator = torch.Generator().manual_seed(5)
    for layer in model.quantizer.layers:
        entries = torch.randn(layer.codebook.embed.shape, generator=generator) * _CODEBOOK_SCALE
        layer.codebook.embed.copy_(entries)
        layer.codebook.embed_avg.copy_(entries)
        layer.codebook.cluster_size.fill_(1.0)
        layer.codebook.inited.fill_(1.0)
    return model


def save_separator(directory: Path) -> None:
    """Write a source separator of demucs' own class, in demucs' hub layout."""
    arguments: dict[str, Any] = {
        "sources": ["drums", "bass", "other", "vocals"], "audio_channels": 2, "channels": 4, "depth": 2,
        "dconv_mode": 0, "resample": False, "samplerate": 44_100, "segment": 10,
    }  # fmt: skip
    model = Demucs(**arguments).eval()
    draw(model, 3, {})
    demo_separator.save_separator(directory, model, arguments)


def language_model_state(lm: nn.Module) -> dict[str, Tensor]:
    """Return half-precision weights for a language model whose own are on the meta device."""
    gains = {"emb.": math.sqrt(_LM_DIM) / 2, "linears.": 1.5, "output_proj.": 1.0}
    drawn = nn.Module()
    state = lm.state_dict()
    for name, parameter in lm.named_parameters():
        drawn.register_parameter(name.replace(".", "/"), nn.Parameter(torch.empty(parameter.shape)))
        state.pop(name)
    draw(drawn, 4, {part.replace(".", "/"): gain for part, gain in gains.items()})
    state.update({name.replace("/", "."): parameter.detach() for name, parameter in drawn.named_parameters()})
    return {name: state[name].half() for name in sorted(state)}
