"""From logits to tokens, with audiocraft's arithmetic (`lm.py::_sample_next_token`).

One request at a time, always on [K, codebook_size]: a row's sums must not depend on how many rows stand beside it. Where the
noise comes from is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audiocraft_api.core.params import GenerationParams

# Exp(1) noise in the shape of the probabilities [K, codebook_size] that it is given.
Noise = Callable[[Tensor], Tensor]


def generator_noise(generator: torch.Generator) -> Noise:
    """Draw as audiocraft does. All codebooks draw in every step, also where pattern or prompt overwrite the token; so the
    generator's state depends on the number of steps alone. Never in blocks: MKL's are not the sequence of their parts.
    """
    return lambda probs: torch.empty_like(probs).exponential_(generator=generator)


def guide(cond: Tensor, null: Tensor, cfg_coef: float) -> Tensor:
    """Apply classifier-free guidance. The order of operations matters: at 1.0 this is not bitwise `cond`."""
    return null + (cond - null) * cfg_coef


def sample(logits: Tensor, params: GenerationParams, noise: Noise) -> Tensor:
    """Draw one token per codebook from logits [K, codebook_size]: tokens int64 [K].

    Greedy without sampling or at temperature 0; else `top_p` over 0 wins over `top_k`, and 0 turns either off.
    """
    if not params.use_sampling or params.temperature <= 0:
        return logits.argmax(dim=-1)
    probs = torch.softmax(logits / params.temperature, dim=-1)
    if params.top_p > 0:
        return _sample_top_p(probs, params.top_p, noise)
    if params.top_k > 0:
        probs = keep_top_k(probs, params.top_k)
    return _multinomial(probs, noise)


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


def _sample_top_p(probs: Tensor, p: float, noise: Noise) -> Tensor:
    # The noise belongs to ranks, not to tokens: it is drawn over the sorted axis.
    probs_sorted, tokens = torch.sort(probs, dim=-1, descending=True)
    ranks = _multinomial(keep_top_p(probs_sorted, p), noise)
    return tokens.gather(-1, ranks.unsqueeze(-1)).squeeze(-1)


def _multinomial(probs: Tensor, noise: Noise) -> Tensor:
    # What torch.multinomial does for one sample, without its checks.
    return (probs / noise(probs)).argmax(dim=-1)
