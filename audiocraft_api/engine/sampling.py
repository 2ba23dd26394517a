"""From logits to tokens: guidance, top-k and top-p, with audiocraft's arithmetic (`lm.py::_sample_next_token`).

`exact` draws its noise from torch's generator, as audiocraft does. Every other precision derives it from a counter: a
request's noise then depends on its seed, the number of its draw, the codebook and the rank only, never on the batch. It
needs no state and no order, so a captured graph and the native library can compute it where they use it. `TorchSampler`
over `counter_noise` is the reference for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.cpu.native.library import SamplingParams
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.failures import as_request_error, not_finite
from audiocraft_api.engine.sequence import Sequence

# Returns Exp(1) noise in the shape of the probabilities [K, codebook_size] that it gets.
Noise = Callable[[Tensor], Tensor]

# splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as signed numbers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


class Sampler(Protocol):
    def sample(self, seqs: list[Sequence], logits: Tensor) -> list[Tensor | AudioCraftError]:
        """Return the next tokens int64 [K] of each sequence, or the error that ends it.

        `logits` [R, K, codebook_size] are those of all the sequences' rows, in order.
        """


class TorchSampler:
    """Samples one sequence after the other with PyTorch operations."""

    def __init__(self, noise: Callable[[Sequence], Noise]) -> None:
        """`noise` is `generator_noise` or `counter_noise`."""
        self._noise = noise

    def sample(self, seqs: list[Sequence], logits: Tensor) -> list[Tensor | AudioCraftError]:
        rows = iter(logits)
        return [self._sample_one(seq, [next(rows) for _ in seq.rows]) for seq in seqs]

    def _sample_one(self, seq: Sequence, logits: list[Tensor]) -> Tensor | AudioCraftError:
        guided = apply_cfg(logits[0], logits[1], seq.params.cfg_coef) if len(logits) > 1 else logits[0]
        if not torch.isfinite(guided).all():
            return not_finite()
        try:
            return sample(guided, seq.params, self._noise(seq))
        except Exception as error:  # noqa: BLE001 - ends this request only
            return as_request_error(error)


class NativeSampler:
    """Samples all sequences in one call of the native library."""

    def __init__(self, backend: NativeBackend) -> None:
        self._backend = backend

    def sample(self, seqs: list[Sequence], logits: Tensor) -> list[Tensor | AudioCraftError]:
        tokens = self._backend.sample([_sampling_params(seq) for seq in seqs], logits)
        are_broken = (tokens < 0).any(dim=1).tolist()
        return [not_finite() if broken else row for row, broken in zip(tokens, are_broken, strict=True)]


def _sampling_params(seq: Sequence) -> SamplingParams:
    params = seq.params
    return SamplingParams(
        seed=params.seed,
        draw=seq.num_draws,
        rows=len(seq.rows),
        is_greedy=not params.use_sampling or params.temperature <= 0,
        top_k=params.top_k,
        top_p=params.top_p,
        temperature=params.temperature,
        cfg_coef=params.cfg_coef,
    )


def apply_cfg(cond: Tensor, uncond: Tensor, cfg_coef: float) -> Tensor:
    """Apply classifier-free guidance. The order of operations matters: at 1.0 the result is not bitwise `cond`."""
    return uncond + (cond - uncond) * cfg_coef


def sample(logits: Tensor, params: GenerationParams, noise: Noise) -> Tensor:
    """Draw one token per codebook from logits [K, codebook_size]: tokens int64 [K].

    Greedy without sampling or at temperature 0. Otherwise `top_p` over 0 takes precedence over `top_k`, and 0 turns
    either off. Samples one request at a time, because the bits of a sum depend on the number of rows.
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
    """Keep the k largest probabilities, scaled to sum 1. Ties with the k-th are kept, so more than k may remain."""
    least = torch.topk(probs, min(k, probs.shape[-1]), dim=-1).values[..., -1:]
    probs = probs * (probs >= least)
    return probs / probs.sum(dim=-1, keepdim=True)


def keep_top_p(probs_sorted: Tensor, p: float) -> Tensor:
    """Keep the shortest prefix of descending probabilities whose sum exceeds `p`, scaled to sum 1."""
    before = torch.cumsum(probs_sorted, dim=-1) - probs_sorted
    probs_sorted = probs_sorted * ~(before > p)
    return probs_sorted / probs_sorted.sum(dim=-1, keepdim=True)


def _sample_top_p(probs: Tensor, p: float, noise: Noise) -> Tensor:
    # The noise belongs to ranks, not to tokens: it is drawn over the sorted axis.
    probs_sorted, tokens = torch.sort(probs, dim=-1, descending=True)
    ranks = _multinomial(keep_top_p(probs_sorted, p), noise)
    return tokens.gather(-1, ranks.unsqueeze(-1)).squeeze(-1)


def _multinomial(probs: Tensor, noise: Noise) -> Tensor:
    # An exponential race, as in torch.multinomial for one sample, without that function's checks.
    return (probs / noise(probs)).argmax(dim=-1)


def generator_noise(seq: Sequence) -> Noise:
    """Return noise from the request's own torch generator, drawn as audiocraft draws it.

    All codebooks draw in every step, even where the pattern or the prompt overwrites the token, so the generator's
    state depends on the number of steps only. Noise cannot be drawn ahead in blocks: with MKL's generator, one large
    draw differs from several small ones.
    """
    return lambda probs: torch.empty_like(probs).exponential_(generator=seq.generator)


def counter_noise(seq: Sequence) -> Noise:
    """Return the noise that follows from the request's seed and the number of this draw."""
    seed, draw = torch.tensor([seq.params.seed]), torch.tensor([seq.num_draws])
    return lambda probs: exponential_noise(seed, draw, *probs.shape)[0]


def exponential_noise(seeds: Tensor, draws: Tensor, num_codebooks: int, codebook_size: int) -> Tensor:
    """Return strictly positive Exp(1) noise, float32 [N, K, codebook_size], for seeds and draw numbers int64 [N]."""
    stream = _mix(seeds + _GAMMA * (draws + 1)).view(-1, 1, 1)
    index = torch.arange(num_codebooks * codebook_size, device=seeds.device).view(1, num_codebooks, codebook_size)
    bits = _logical_right_shift(_mix(stream + _GAMMA * (index + 1)), 40)  # the upper 24 bits, exact in float32
    return -torch.log((bits.float() + 0.5) * 2.0**-24)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_right_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_right_shift(x, 27)) * _MIX_2
    return x ^ _logical_right_shift(x, 31)


def _logical_right_shift(x: Tensor, count: int) -> Tensor:
    return (x >> count) & ((1 << (64 - count)) - 1)
