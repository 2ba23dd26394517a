"""A model with the shape of a released one and random weights, built from torch and transformers alone.

The engine reads it like a loaded model: its modules have the names of audiocraft's. It needs no files, and no
audiocraft, which imports hundreds of megabytes of packages.
"""

from __future__ import annotations

import math
import re
import zlib
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.window import Window
from bench import shapes

NUM_CODEBOOKS, CODEBOOK_SIZE = 4, 2048
WINDOW_SECONDS = 30
END_OF_TEXT = 1  # of T5's tokenizer
# A model for checks and tests: name → (dim, heads, layers).
TINY = (64, 2, 2)
TINY_CODEC = {"num_filters": 4, "hidden_size": 32, "codebook_dim": 32}
TINY_TEXT_ENCODER = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}


class Spec(NamedTuple):
    """What the benchmark reads of a `ModelSpec`."""

    name: str
    extend_stride_seconds: float = 18.0


class RandomModel:
    """A text-to-music model in place of a `LoadedModel`, for requests of one window that have only texts."""

    revision = codec_digest = "random"
    sample_rate, frame_rate, channels = 32_000, 50.0, 1
    num_codebooks, codebook_size, special_token_id = NUM_CODEBOOKS, CODEBOOK_SIZE, CODEBOOK_SIZE
    max_window_frames = 50 * WINDOW_SECONDS
    has_melody = has_prefix = has_released_decoder_weights = False

    def __init__(self, scale: str, device: torch.device, dtype: torch.dtype) -> None:
        """`scale` is `tiny` or one of `shapes.SCALES`; `dtype` is that of the language model."""
        self.spec = Spec(f"random-{scale}")
        self.device = device
        sizes = TINY_TEXT_ENCODER if scale == "tiny" else shapes.T5_BASE
        with device:
            self._text_encoder = shapes.make_text_encoder(sizes)
            self.codec = shapes.make_codec(shapes.codec_config(**TINY_CODEC) if scale == "tiny" else None)
        dim, num_heads, num_layers = TINY if scale == "tiny" else shapes.SCALES[scale]
        with torch.device("meta"):
            self.lm = LanguageModel(dim, num_heads, num_layers, sizes["d_model"]).to(dtype)
        self.lm.to_empty(device=device)
        _draw(self.lm)
        for module in (self._text_encoder, self.codec, self.lm):
            module.requires_grad_(False)

    @property
    def weight_bytes(self) -> int:
        modules: list[nn.Module] = [self._text_encoder, self.codec, self.lm]
        return sum(parameter.nbytes for module in modules for parameter in module.parameters())

    def windows(self, params: GenerationParams, num_prompt_frames: int) -> list[Window]:
        num_frames = max(1, round(params.duration_seconds * self.frame_rate))
        assert num_frames <= self.max_window_frames, "a random model has one window"
        return [Window(0, num_prompt_frames, num_frames)]

    @torch.no_grad()
    def condition_tensors(
        self, description: str, _melody: None = None, _start: None = None, negative_description: str | None = None
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
        """Return the conditional and the unconditional condition; see `LoadedModel.condition_tensors`."""
        cond, uncond = self._encoded(description), self._encoded(negative_description or "")
        return {"description": cond}, {"description": uncond}

    def _encoded(self, text: str) -> tuple[Tensor, Tensor]:
        """Return a text's condition [1, L, D] and its mask [1, L]; zeros for no text, as audiocraft does."""
        tokens = text_tokens(text).to(self.device)
        hidden = self._text_encoder(input_ids=tokens).last_hidden_state
        condition = self.lm.output_proj(hidden.to(self.lm.output_proj.weight.dtype))
        mask = torch.full(tokens.shape, int(bool(text)), device=self.device)
        return condition * mask.unsqueeze(-1), mask


class LanguageModel(nn.Module):
    """The parts of audiocraft's `LMModel` that `engine.weights` reads, and the projection of texts."""

    def __init__(self, dim: int, num_heads: int, num_layers: int, text_dim: int) -> None:
        super().__init__()
        self.emb = nn.ModuleList(nn.Embedding(CODEBOOK_SIZE + 1, dim) for _ in range(NUM_CODEBOOKS))
        self.transformer = _Transformer(dim, num_heads, num_layers)
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, CODEBOOK_SIZE, bias=False) for _ in range(NUM_CODEBOOKS))
        self.output_proj = nn.Linear(text_dim, dim)
        self.pattern_provider = SimpleNamespace(delays=list(range(NUM_CODEBOOKS)), flatten_first=0, empty_initial=0)
        self.fuser = Fuser({"sum": [], "prepend": [], "cross": ["description"], "input_interpolate": []}, False, 1.0)


class Fuser:
    """Adds conditions as audiocraft's `ConditionFuser` does for text-to-music models: by cross-attention only."""

    def __init__(self, fuse2cond: dict[str, list[str]], cross_attention_pos_emb: bool, scale: float) -> None:
        self.fuse2cond = fuse2cond
        self.cross_attention_pos_emb = cross_attention_pos_emb
        self.cross_attention_pos_emb_scale = scale

    def __call__(self, inputs: Tensor, conditions: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return inputs, conditions["description"][0]


class _Transformer(nn.Module):
    positional_embedding, max_period, positional_scale = "sin", 10_000, 1.0

    def __init__(self, dim: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(dim, num_heads) for _ in range(num_layers))


class _Layer(nn.Module):
    norm_first = True
    activation = staticmethod(nn.functional.gelu)

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm_cross, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attn, self.cross_attention = (_Attention(dim, num_heads) for _ in range(2))
        self.linear1 = nn.Linear(dim, 4 * dim, bias=False)
        self.linear2 = nn.Linear(4 * dim, dim, bias=False)
        self.layer_scale_1 = nn.Identity()


class _Attention(nn.Module):
    custom, kv_repeat, qk_layer_norm, past_context = True, 1, False, None

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)


def text_tokens(text: str) -> Tensor:
    """Return one token [1, L] for each word, and the one that ends a text. There is no vocabulary without files."""
    words = [2 + zlib.crc32(word.encode()) % 32_000 for word in text.split()]
    return torch.tensor([[*words, END_OF_TEXT]])


@torch.no_grad()
def _draw(lm: nn.Module) -> None:
    """Draw weights like audiocraft's initialization; see `shapes`."""
    device = next(lm.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in sorted(lm.named_parameters()):
        if parameter.dim() < 2:
            parameter.fill_(float("norm" in name and name.endswith("weight")))
            continue
        layer = re.search(r"layers\.(\d+)\.", name)
        depth = math.sqrt(2 * (int(layer[1]) + 1)) if layer else 1.0
        parameter.normal_(0.0, 1.0 / (math.sqrt(parameter.shape[-1]) * depth), generator=generator)
