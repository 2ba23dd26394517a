"""Small language models of audiocraft's own class, with random weights and a word table in place of T5."""

from __future__ import annotations

from typing import Any

import torch

from audiocraft_api.model import xformers_stub

MONO = (0, 1, 2, 3)
STEREO = (0, 0, 1, 1, 2, 2, 3, 3)


def build_lm(
    *,
    delays: tuple[int, ...] = MONO,
    dim: int = 64,
    num_heads: int = 2,
    num_layers: int = 3,
    codebook_size: int = 512,
    fuse: str = "cross",
    seed: int = 0,
    gain: float = 1.5,
) -> Any:
    """Build an `LMModel` of the MusicGen family; `fuse` "prepend" makes the description a prefix, as in melody models.

    Weights are noise of `gain` over the root of the fan-in. With a gain over 1, the logits differ enough for sampling
    to matter.
    """
    xformers_stub.install()
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider

    fuse2cond = {"cross": [], "prepend": [], "sum": [], "input_interpolate": []} | {fuse: ["description"]}
    with torch.device("meta"):  # at the released sizes, initializing weights that are overwritten below takes seconds
        lm = LMModel(
            DelayedPatternProvider(len(delays), list(delays)),
            ConditioningProvider({"description": _word_conditioner(dim)}),
            ConditionFuser(fuse2cond),
            n_q=len(delays),
            card=codebook_size,
            dim=dim,
            num_heads=num_heads,
            num_layers=num_layers,
            norm_first=True,
            bias_proj=False,
            bias_ff=False,
            bias_attn=False,
            causal=True,
            custom=True,
            memory_efficient=False,
            attention_as_float32=False,
            cross_attention=fuse == "cross",
            activation="gelu",
        )
    lm.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in lm.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=gain / parameter.shape[1] ** 0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return lm


def _word_conditioner(dim: int) -> Any:
    """Replace T5 by a table of words, then audiocraft's projection and mask (`conditioners.py::T5Conditioner`)."""
    from audiocraft.modules.conditioners import TextConditioner

    class WordConditioner(TextConditioner):
        def __init__(self) -> None:
            super().__init__(dim, dim)
            self.table = torch.nn.Embedding(64, dim)

        def tokenize(self, descriptions: list[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
            words = [(text or "").split() or [""] for text in descriptions]
            ids = torch.zeros(len(words), max(map(len, words)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, (text, line) in enumerate(zip(descriptions, words, strict=True)):
                ids[row, : len(line)] = torch.tensor([sum(map(ord, word)) % 64 for word in line])
                mask[row, : len(line)] = bool(text)
            return ids, mask

        def forward(self, tokens: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            ids, mask = tokens
            return self.output_proj(self.table(ids)) * mask.unsqueeze(-1), mask

    return WordConditioner()


def conditions(lm: Any, description: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a request's conditional and unconditional tensors, computed together as audiocraft does."""
    from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout, ConditioningAttributes

    attributes = [ConditioningAttributes(text={"description": description})]
    both = attributes + ClassifierFreeGuidanceDropout(p=1.0)(attributes)
    with torch.inference_mode():
        tensors = lm.condition_provider(lm.condition_provider.tokenize(both))
    split = [{name: (x[i : i + 1], mask[i : i + 1]) for name, (x, mask) in tensors.items()} for i in range(2)]
    return split[0], split[1]


def generate(lm: Any, description: str, seed: int, num_frames: int, prompt: torch.Tensor | None = None, **params: Any):
    """Run audiocraft's own loop for one request: codes [K, T]."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    torch.manual_seed(seed)
    attributes = [ConditioningAttributes(text={"description": description})]
    prompt = None if prompt is None else prompt[None]
    return lm.generate(prompt, attributes, max_gen_len=num_frames, **params)[0]
