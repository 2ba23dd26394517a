"""From logits to tokens, with audiocraft's arithmetic and its use of the random generator (`lm.py::_sample_next_token`).

One request at a time, always on [K, card]: a row's sums must not depend on how many rows stand beside it. Every
codebook draws noise in every step, also where the pattern or a prompt overwrites what was drawn; so the generator's
state depends on the number of steps alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from audiocraft_api.engine.params import GenerationParams


def guide(cond: Tensor, null: Tensor, cfg_coef: float) -> Tensor:
    """Apply classifier-free guidance. The order of operations matters: at 1.0 this is not bitwise `cond`."""
    return null + (cond - null) * cfg_coef


def sample(logits: Tensor, params: GenerationParams, generator: torch.Generator) -> Tensor:
    """Draw one token per codebook from logits [K, card]: tokens int64 [K].

    Greedy without sampling or at temperature 0; else `top_p` over 0 wins over `top_k`, and 0 turns either off.
    """
    if not params.use_sampling or params.temperature <= 0:
        return logits.argmax(dim=-1)
    probs = torch.softmax(logits / params.temperature, dim=-1)
    if params.top_p > 0:
        return _sample_top_p(probs, params.top_p, generator)
    if params.top_k > 0:
        probs = keep_top_k(probs, params.top_k)
    return _multinomial(probs, generator)


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    """Zero all but the k largest and scale to sum 1. Ties with the k-th stay, so more than k may be left."""
    least = torch.topk(probs, min(k, probs.shape[-1]), dim=-1).values[..., -1:]
    probs = probs * (probs >= least)
    return probs / probs.sum(dim=-1, keepdim=True)


def keep_top_p(probs_sorted: Tensor, p: float) -> Tensor:
    """Of probabilities in descending order keep the shortest head that holds over `p`, scaled to sum 1."""
    before = torch.cumsum(probs_sorted, dim=-1) - probs_sorted
    probs_sorted = probs_sorted * ~(before > p)
    return probs_sorted / probs_sorted.sum(dim=-1, keepdim=True)


def _sample_top_p(probs: Tensor, p: float, generator: torch.Generator) -> Tensor:
    # The noise belongs to ranks, not to tokens: it is drawn over the sorted axis.
    probs_sorted, tokens = torch.sort(probs, dim=-1, descending=True)
    ranks = _multinomial(keep_top_p(probs_sorted, p), generator)
    return tokens.gather(-1, ranks.unsqueeze(-1)).squeeze(-1)


def _multinomial(probs: Tensor, generator: torch.Generator) -> Tensor:
    # What torch.multinomial does for one sample, without its checks. Noise is drawn step by step, never in blocks:
    # with MKL's generator a block is not the sequence of its parts.
    noise = torch.empty_like(probs).exponential_(generator=generator)
    return (probs / noise).argmax(dim=-1)
