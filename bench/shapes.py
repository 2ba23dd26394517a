"""Checkpoints with the shapes of the released models and random weights.

They need the same computation as the released checkpoints, without the download. Their audio is noise.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

DIRECTORY = Path("build/bench")
# name → (dim, heads, layers), as config/model/lm/model_scale/*.yaml of audiocraft
SCALES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48), "audiogen": (1536, 24, 48)}
T5_VOCABULARY = 32_128
T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
T5_LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16}
# The fields of a models file that AudioGen's shape needs.
AUDIOGEN = {"kind": "sound_effects", "sample_rate": 16_000, "window_seconds": 10, "extend_stride_seconds": 2}


def checkpoint(scale: str) -> str:
    """Create the checkpoint of a scale unless it exists; return its public name, which `models_file` lists."""
    name = f"bench-{scale}"
    target = DIRECTORY / name
    if not (target / "state_dict.bin").is_file():
        shutil.rmtree(target, ignore_errors=True)
        print(f"Making random weights of {scale}'s shape …", flush=True)
        _write(scale, target)
    return name


def models_file() -> Path:
    """Write a models file that lists every scale's checkpoint."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / "models.json"
    entries: dict[str, dict[str, Any]] = {
        f"bench-{scale}": {"checkpoint": str((DIRECTORY / f"bench-{scale}").absolute())} for scale in SCALES
    }
    entries["bench-audiogen"] |= AUDIOGEN
    path.write_text(json.dumps(entries))
    return path


def _write(scale: str, directory: Path) -> None:
    dim, num_heads, num_layers = SCALES[scale]
    if scale == "audiogen":
        write_audiogen(directory, T5_LARGE, dim=dim, num_heads=num_heads, num_layers=num_layers)
        return
    import torch

    from audiocraft_api.model import demo

    demo.add_repository(directory / "hub", demo.CODEC_ID, make_codec().save_pretrained)
    torch.save({"pretrained": demo.CODEC_ID}, directory / "compression_state_dict.bin")
    _write_language_model(directory, T5_BASE, dim=dim, num_heads=num_heads, num_layers=num_layers)


def write_audiogen(
    directory: Path, text_encoder: dict[str, int], *, num_filters: int = 64, dimension: int = 128, **sizes: int
) -> None:
    """Write a checkpoint in AudioGen's format, whose codec is audiocraft's own.

    `text_encoder` has the sizes of a T5 encoder, `sizes` the width, heads and layers of the language model.
    """
    from audiocraft_api.model import released_configuration

    _write_language_model(directory, text_encoder, sample_rate=16_000, window_seconds=10, **sizes)
    configuration = released_configuration.audiogen_codec_configuration(num_filters=num_filters, dimension=dimension)
    _save_package(configuration, _codec_state(configuration), directory / "compression_state_dict.bin")


def _write_language_model(directory: Path, text_encoder: dict[str, int], **arguments: Any) -> None:
    """Write `state_dict.bin`, and the text encoder into the checkpoint's hub cache."""
    from audiocraft_api.model import xformers_stub

    xformers_stub.install()
    import torch
    from omegaconf import OmegaConf

    from audiocraft_api.model import demo, released_configuration
    from audiocraft_api.model.checkpoint import build_language_model
    from audiocraft_api.model.hub import Hub
    from bench import untrained

    hub, encoder_id = directory / "hub", demo.TEXT_ENCODER_ID
    encoder = make_text_encoder(text_encoder)
    demo.add_repository(hub, encoder_id, untrained.tokenizer().save_pretrained, encoder.save_pretrained)
    configuration = released_configuration.configuration(
        text_encoder=encoder_id, melody=False, stereo=False, **arguments
    )
    lm = build_language_model(OmegaConf.create(configuration), Hub(hub, offline=True), torch.device("cpu"))
    _save_package(configuration, _language_model_state(lm), directory / "state_dict.bin")


def _save_package(configuration: dict[str, Any], state: dict[str, Any], path: Path) -> None:
    """Save what audiocraft's `export_lm` and `export_encodec` save."""
    import torch
    from omegaconf import OmegaConf

    package = {"best_state": state, "xp.cfg": OmegaConf.to_yaml(OmegaConf.create(configuration)), "exported": True}
    torch.save(package, path)


def _codec_state(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return random weights of audiocraft's own codec, with codebooks that are as loud as encoded sound."""
    import torch
    from omegaconf import OmegaConf

    from audiocraft_api.model.checkpoint import build_codec

    torch.manual_seed(0)
    state: dict[str, Any] = build_codec(OmegaConf.create(configuration)).state_dict()
    for name, value in state.items():
        if name.endswith(("embed", "embed_avg")):
            torch.nn.init.normal_(value)
        elif name.endswith("inited"):
            value.fill_(1)
    return state


def _language_model_state(lm: Any) -> dict[str, Any]:
    """Draw weights like audiocraft's initialization: 1/sqrt(fan-in), smaller in deeper layers.

    Source: lm.py, depthwise "current".
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in sorted(lm.state_dict().items()):
        if value.dim() < 2:
            state[name] = torch.full(value.shape, float("norm" in name and name.endswith("weight"))).half()
            continue
        layer = re.search(r"layers\.(\d+)\.", name)
        depth = math.sqrt(2 * (int(layer[1]) + 1)) if layer else 1.0
        noise = torch.randn(value.shape, generator=generator)
        state[name] = noise.mul_(1.0 / (math.sqrt(value.shape[-1]) * depth)).half()
    return state


def make_text_encoder(sizes: dict[str, int]) -> Any:
    """Return an encoder of T5's class."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**{"vocab_size": T5_VOCABULARY, **sizes})).eval()


def codec_config(num_filters: int = 64, hidden_size: int = 128, codebook_dim: int = 128) -> Any:
    """Return a configuration of EnCodec, by default the released one for 32 kHz: 56.9 million parameters."""
    from transformers import EncodecConfig

    return EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, use_causal_conv=False,
        num_filters=num_filters, num_residual_layers=1, upsampling_ratios=[8, 5, 4, 4], hidden_size=hidden_size,
        codebook_dim=codebook_dim, codebook_size=2048, norm_type="weight_norm", chunk_length_s=None,
        num_lstm_layers=2, kernel_size=7, last_kernel_size=7, residual_kernel_size=3, use_conv_shortcut=False,
        pad_mode="reflect",
    )  # fmt: skip


def make_codec(config: Any = None) -> Any:
    """Return an EnCodec model, by default of the released configuration."""
    import torch
    from transformers import EncodecModel

    torch.manual_seed(0)
    model = EncodecModel(config or codec_config()).eval()
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    return model
