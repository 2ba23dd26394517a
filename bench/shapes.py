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
SCALES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48)}


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
    entries = {f"bench-{scale}": {"checkpoint": str((DIRECTORY / f"bench-{scale}").absolute())} for scale in SCALES}
    path.write_text(json.dumps(entries))
    return path


def _write(scale: str, directory: Path) -> None:
    from audiocraft_api.model import xformers_stub

    xformers_stub.install()
    import torch
    from omegaconf import OmegaConf

    from audiocraft_api.model import demo, demo_parts
    from audiocraft_api.model.checkpoint import build_language_model
    from audiocraft_api.model.hub import Hub

    hub = directory / "hub"
    demo.add_repository(
        hub, demo_parts.TEXT_ENCODER_ID, demo_parts.tokenizer().save_pretrained, _text_encoder().save_pretrained
    )
    demo.add_repository(hub, demo_parts.CODEC_ID, _codec().save_pretrained)
    configuration = demo_parts.configuration(melody=False, stereo=False)
    dim, num_heads, num_layers = SCALES[scale]
    configuration["transformer_lm"].update(dim=dim, num_heads=num_heads, num_layers=num_layers)
    config = OmegaConf.create(configuration)
    lm = build_language_model(config, Hub(hub, offline=True), torch.device("cpu"))
    torch.save({"pretrained": demo_parts.CODEC_ID}, directory / "compression_state_dict.bin")
    package = {"xp.cfg": OmegaConf.to_yaml(config), "best_state": _language_model_state(lm)}
    torch.save(package, directory / "state_dict.bin")


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


def _text_encoder() -> Any:
    """Return an encoder with the shape of T5-base."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    return T5EncoderModel(config).eval()


def _codec() -> Any:
    """Return an EnCodec model with the released 32 kHz configuration: 56.9 million parameters."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, use_causal_conv=False,
        num_filters=64, num_residual_layers=1, upsampling_ratios=[8, 5, 4, 4], hidden_size=128, codebook_dim=128,
        codebook_size=2048, norm_type="weight_norm", chunk_length_s=None, num_lstm_layers=2, kernel_size=7,
        last_kernel_size=7, residual_kernel_size=3, use_conv_shortcut=False, pad_mode="reflect",
    )  # fmt: skip
    torch.manual_seed(0)
    model = EncodecModel(config).eval()
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    return model
