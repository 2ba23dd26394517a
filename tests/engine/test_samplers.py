"""The native sampler against its plain twin: the same tokens from the same named noise, each request on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.precision import make_sampler
from audiocraft_api.engine.samplers import NativeSampler, TorchSampler, counter_noise, request_noise
from audiocraft_api.engine.torch_backend import TorchBackend
from support.engines import params
from support.random_weights import CODEBOOK_SIZE, NUM_CODEBOOKS, random_weights

NUM_STEPS = 200

RULES: list[dict[str, Any]] = [
    {"top_k": 0},
    {"top_k": 1},
    {"top_k": 10},
    {"top_k": CODEBOOK_SIZE},
    {"top_k": 250},
    {"top_k": 10, "top_p": 0.9},
    {"top_k": 0, "top_p": 1e-6},
    {"top_k": 0, "top_p": 1.0},
    {"temperature": 0.1},
    {"temperature": 2.0, "top_k": 0},
    {"temperature": 0.0},
    {"use_sampling": False},
    {"top_k": 10, "cfg_coef": 1.0},
    {"top_k": 10, "cfg_coef": 6.0},
    {"seed": 2**53 - 1},
]


@dataclass
class Run:
    """What a sampler reads of a running request."""

    params: GenerationParams
    rows: range
    num_draws: int = 0


def tokens_of(drawn: Any) -> Tensor:
    assert isinstance(drawn, Tensor), drawn
    return drawn


def is_by_rank(rule: dict[str, Any]) -> bool:
    return "top_p" in rule or not rule.get("use_sampling", True) or rule.get("temperature") == 0


@pytest.fixture(scope="module")
def native() -> NativeSampler:
    return NativeSampler(NativeBackend(random_weights(), num_slots=1, capacity=8, weight_format="int6"))


def steps(kind: str, num_rows: int) -> Tensor:
    """Logits [S, R, K, codebook_size]"""
    logits = torch.randn(NUM_STEPS, num_rows, NUM_CODEBOOKS, CODEBOOK_SIZE, generator=torch.Generator().manual_seed(1))
    return {"smooth": logits, "tied": logits.round(), "peaked": logits * 20}[kind]


@pytest.mark.parametrize("kind", ["smooth", "tied", "peaked"])
def test_every_rule_gives_the_twins_tokens_in_one_batch(native: NativeSampler, kind: str) -> None:
    twin = TorchSampler(counter_noise)  # type: ignore[arg-type]
    # Which of two equal candidates has the first rank is nobody's promise.
    rules = [rule for rule in RULES if kind != "tied" or not is_by_rank(rule)]
    runs = [Run(params(**rule), range(1 + index % 2)) for index, rule in enumerate([*rules, *rules, *rules[:1]])]
    num_equal = 0
    for step in steps(kind, sum(len(run.rows) for run in runs)):
        expected, found = (torch.stack([tokens_of(each) for each in s.sample(runs, step)]) for s in (twin, native))  # type: ignore[arg-type, attr-defined]
        num_equal += int((found == expected).sum())
        for run in runs:
            run.num_draws += 1
    # Where two candidates are as good as equal, the last bit of an exponential may choose.
    assert num_equal >= 0.9995 * NUM_STEPS * len(runs) * NUM_CODEBOOKS


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_requests_tokens_do_not_depend_on_its_neighbours(native: NativeSampler, rule: dict[str, Any]) -> None:
    run, neighbours = Run(params(**rule), range(2), num_draws=3), [Run(params(**each), range(1)) for each in RULES]
    for index, step in enumerate(steps("smooth", 2 + len(neighbours))[:20]):
        place = index % len(neighbours)
        runs = [*neighbours[:place], run, *neighbours[place:]]
        together = native.sample(runs, step)[place]  # type: ignore[arg-type]
        alone = native.sample([run], step[place : place + 2])[0]  # type: ignore[list-item]
        assert torch.equal(tokens_of(together), tokens_of(alone))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, CODEBOOK_SIZE - 1)], ids=["conditional row", "null row"])
def test_logits_that_are_not_finite_end_their_request_alone(
    native: NativeSampler, bad: float, place: tuple[int, int, int]
) -> None:
    runs = [Run(params(), range(2)) for _ in range(3)]
    logits = steps("smooth", 6)[0]
    expected = native.sample(runs, logits)  # type: ignore[arg-type]
    row, codebook, token = place
    logits[2 + row, codebook, token] = bad
    drawn = native.sample(runs, logits)  # type: ignore[arg-type]
    assert isinstance(drawn[1], GenerationFailed)
    for index in (0, 2):
        assert torch.equal(tokens_of(drawn[index]), tokens_of(expected[index]))


def test_tokens_follow_the_probabilities(native: NativeSampler) -> None:
    logits = (
        torch.randn(1, 1, CODEBOOK_SIZE, generator=torch.Generator().manual_seed(0))
        .mul(2)
        .expand(1, NUM_CODEBOOKS, CODEBOOK_SIZE)
    )
    expected = torch.softmax(logits[0, 0], dim=0)
    runs = [Run(params(seed=seed, top_k=0), range(1)) for seed in range(5000)]
    drawn = native.sample(runs, logits.expand(len(runs), -1, -1))  # type: ignore[arg-type]
    found = torch.bincount(torch.stack([tokens_of(each) for each in drawn]).flatten(), minlength=CODEBOOK_SIZE).float()
    found /= found.sum()
    assert (found - expected).abs().max() < 4 * (0.25 / (len(runs) * NUM_CODEBOOKS)) ** 0.5


def test_exact_draws_from_audiocrafts_generator_and_nothing_else_does() -> None:
    weights = random_weights()
    runner = TorchBackend(weights, num_slots=1, capacity=8)
    exact, portable = make_sampler(runner, is_exact=True), make_sampler(runner, is_exact=False)
    assert isinstance(exact, TorchSampler)
    assert isinstance(portable, TorchSampler)
    assert (exact._noise, portable._noise) == (request_noise, counter_noise)
    fast = NativeBackend(weights, num_slots=1, capacity=8, weight_format="int6")
    assert isinstance(make_sampler(fast, is_exact=False), NativeSampler)
    assert isinstance(make_sampler(fast, is_exact=True), TorchSampler)
