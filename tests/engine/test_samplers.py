"""The native sampler against its reference: the same tokens from the same counter noise, each request on its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.precision import make_sampler
from audiocraft_api.engine.sampling import NativeSampler, TorchSampler, counter_noise
from audiocraft_api.engine.sequence import Conditioning, Sequence
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
class FakeSequence:
    """What a sampler reads from a sequence."""

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
def test_every_rule_gives_the_references_tokens_in_one_batch(native: NativeSampler, kind: str) -> None:
    reference = TorchSampler(counter_noise)  # type: ignore[arg-type]
    # The order of equal candidates is unspecified.
    rules = [rule for rule in RULES if kind != "tied" or not is_by_rank(rule)]
    seqs = [
        FakeSequence(params(**rule), range(1 + index % 2)) for index, rule in enumerate([*rules, *rules, *rules[:1]])
    ]
    num_equal = 0
    for step in steps(kind, sum(len(seq.rows) for seq in seqs)):
        expected, found = (torch.stack([tokens_of(each) for each in s.sample(seqs, step)]) for s in (reference, native))  # type: ignore[arg-type, attr-defined]
        num_equal += int((found == expected).sum())
        for seq in seqs:
            seq.num_draws += 1
    # Between almost equal candidates, the last bit of an exponential may decide.
    assert num_equal >= 0.9995 * NUM_STEPS * len(seqs) * NUM_CODEBOOKS


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_requests_tokens_do_not_depend_on_its_neighbors(native: NativeSampler, rule: dict[str, Any]) -> None:
    seq, neighbors = (
        FakeSequence(params(**rule), range(2), num_draws=3),
        [FakeSequence(params(**each), range(1)) for each in RULES],
    )
    for index, step in enumerate(steps("smooth", 2 + len(neighbors))[:20]):
        place = index % len(neighbors)
        seqs = [*neighbors[:place], seq, *neighbors[place:]]
        together = native.sample(seqs, step)[place]  # type: ignore[arg-type]
        alone = native.sample([seq], step[place : place + 2])[0]  # type: ignore[list-item]
        assert torch.equal(tokens_of(together), tokens_of(alone))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, CODEBOOK_SIZE - 1)], ids=["conditional row", "unconditional row"])
def test_infinite_or_nan_logits_end_only_their_request(
    native: NativeSampler, bad: float, place: tuple[int, int, int]
) -> None:
    seqs = [FakeSequence(params(), range(2)) for _ in range(3)]
    logits = steps("smooth", 6)[0]
    expected = native.sample(seqs, logits)  # type: ignore[arg-type]
    row, codebook, token = place
    logits[2 + row, codebook, token] = bad
    drawn = native.sample(seqs, logits)  # type: ignore[arg-type]
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
    seqs = [FakeSequence(params(seed=seed, top_k=0), range(1)) for seed in range(5000)]
    drawn = native.sample(seqs, logits.expand(len(seqs), -1, -1))  # type: ignore[arg-type]
    found = torch.bincount(torch.stack([tokens_of(each) for each in drawn]).flatten(), minlength=CODEBOOK_SIZE).float()
    found /= found.sum()
    assert (found - expected).abs().max() < 4 * (0.25 / (len(seqs) * NUM_CODEBOOKS)) ** 0.5


def test_only_exact_draws_from_the_requests_generator() -> None:
    weights = random_weights()
    backends = [
        TorchBackend(weights, num_slots=1, capacity=8),
        NativeBackend(weights, num_slots=1, capacity=8, weight_format="int6"),
    ]
    pattern = DelayPattern([0] * NUM_CODEBOOKS, CODEBOOK_SIZE)
    for backend, is_exact in itertools.product(backends, [True, False]):
        seq = Sequence(EngineRequest(params()), [0], pattern)
        seq.rows = [Conditioning(None, None)]
        before = seq.generator.get_state()
        make_sampler(backend, is_exact=is_exact).sample([seq], torch.zeros(1, NUM_CODEBOOKS, CODEBOOK_SIZE))
        assert torch.equal(seq.generator.get_state(), before) == (not is_exact)


def test_the_native_backend_samples_with_its_own_library() -> None:
    backend = NativeBackend(random_weights(), num_slots=1, capacity=8, weight_format="int6")
    assert isinstance(make_sampler(backend, is_exact=False), NativeSampler)
