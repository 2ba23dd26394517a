"""Who chooses the tokens of a step on the CPU: PyTorch with audiocraft's generator, or the native library with its own noise.

`exact` needs the generator. Every other precision names its noise by seed and number of the draw (`noise.py`), which
the native library makes where it is used; `TorchSampler` over `counter_noise` is that one's plain twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.engine.cpu.native.library import SamplingParams
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.failures import as_request_error, not_finite
from audiocraft_api.engine.noise import exponential_noise
from audiocraft_api.engine.sampling import Noise, generator_noise, guide, sample
from audiocraft_api.engine.sequence import RunningRequest


class Sampler(Protocol):
    def sample(self, runs: Sequence[RunningRequest], logits: Tensor) -> list[Tensor | AudioCraftError]:
        """Choose the tokens int64 [K] of every request from all their rows' logits [R, K, codebook_size], or say why not."""


def request_noise(run: RunningRequest) -> Noise:
    """Return the noise of the request's own generator, as audiocraft draws it."""
    return generator_noise(run.generator)


def counter_noise(run: RunningRequest) -> Noise:
    """Return the noise that the request's seed and the number of this draw name."""
    seed, draw = torch.tensor([run.params.seed]), torch.tensor([run.num_draws])
    return lambda probs: exponential_noise(seed, draw, *probs.shape)[0]


class TorchSampler:
    """One request after the other, in PyTorch's operations."""

    def __init__(self, noise: Callable[[RunningRequest], Noise]) -> None:
        self._noise = noise

    def sample(self, runs: Sequence[RunningRequest], logits: Tensor) -> list[Tensor | AudioCraftError]:
        rows = iter(logits)
        return [self._choose(run, [next(rows) for _ in run.rows]) for run in runs]

    def _choose(self, run: RunningRequest, logits: Sequence[Tensor]) -> Tensor | AudioCraftError:
        guided = guide(logits[0], logits[1], run.params.cfg_coef) if len(logits) > 1 else logits[0]
        if not torch.isfinite(guided).all():
            return not_finite()
        try:
            return sample(guided, run.params, self._noise(run))
        except Exception as error:  # noqa: BLE001
            return as_request_error(error)


class NativeSampler:
    """All requests in one call of the native library."""

    def __init__(self, backend: NativeBackend) -> None:
        self._backend = backend

    def sample(self, runs: Sequence[RunningRequest], logits: Tensor) -> list[Tensor | AudioCraftError]:
        tokens = self._backend.sample([_choice(run) for run in runs], logits)
        are_broken = (tokens < 0).any(dim=1).tolist()
        return [not_finite() if broken else row for row, broken in zip(tokens, are_broken, strict=True)]


def _choice(run: RunningRequest) -> SamplingParams:
    params = run.params
    return SamplingParams(
        seed=params.seed,
        draw=run.num_draws,
        rows=len(run.rows),
        is_greedy=not params.use_sampling or params.temperature <= 0,
        top_k=params.top_k,
        top_p=params.top_p,
        temperature=params.temperature,
        cfg_coef=params.cfg_coef,
    )
