"""Measures Hugging Face transformers' MusicGen with random weights of a released shape."""

from __future__ import annotations

import time
from typing import Any

import torch

from bench import random_model, shapes
from bench.engine import DESCRIPTION

GUIDANCE = 3.0
WARMUP_FRAMES = 10


def seconds_per_second(scale: str, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Generate audio with guidance; return the time per second of audio, with codec."""
    model = _model(scale, device, dtype)
    tokens = random_model.text_tokens(DESCRIPTION).to(device)
    for num_frames in (WARMUP_FRAMES, round(seconds * random_model.RandomModel.frame_rate)):
        begin = time.perf_counter()
        # The delay pattern needs as many further columns as there are codebooks.
        length = num_frames + random_model.NUM_CODEBOOKS
        audio = model.generate(
            input_ids=tokens, max_new_tokens=length, guidance_scale=GUIDANCE, do_sample=True, top_k=250
        ).cpu()
        elapsed = time.perf_counter() - begin
    num_samples: int = audio.shape[-1]
    return elapsed / (num_samples / random_model.RandomModel.sample_rate)


def _model(scale: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration, T5Config

    tiny = scale == "tiny"
    sizes = random_model.TINY_TEXT_ENCODER if tiny else shapes.T5_BASE
    dim, num_heads, num_layers = random_model.TINY if tiny else shapes.SCALES[scale]
    special = random_model.CODEBOOK_SIZE
    decoder = MusicgenDecoderConfig(
        vocab_size=random_model.CODEBOOK_SIZE, num_codebooks=random_model.NUM_CODEBOOKS, hidden_size=dim,
        num_attention_heads=num_heads, num_hidden_layers=num_layers, ffn_dim=4 * dim,
        pad_token_id=special, bos_token_id=special,
    )  # fmt: skip
    config = MusicgenConfig(
        text_encoder=T5Config(**{"vocab_size": shapes.T5_VOCABULARY, **sizes}).to_dict(),
        audio_encoder=shapes.codec_config(**(random_model.TINY_CODEC if tiny else {})).to_dict(),
        decoder=decoder.to_dict(),
    )
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = MusicgenForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(previous)
    model.generation_config.decoder_start_token_id = special
    model.generation_config.pad_token_id = special
    return model
