"""A request's codes are its own, whoever comes, leaves and fails beside it: seeded random histories on every runner."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Canceled, GenerationFailed
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend, packed_linear
from audiocraft_api.engine.weights import converted
from support.engines import CodesDecoder, OneModelEach, WrappedRunner, codes_of, demo_model, noise, params, stepper_over

NUM_REQUESTS = 12
LAST_STEP = 120

RUNNERS: dict[str, Callable[..., Any]] = {
    "torch": lambda weights, _, **sizes: TorchBackend(weights, **sizes),
    # Few processors pack half precision: in float32, as the engine has it.
    "torch-packed": lambda weights, _, **sizes: TorchBackend(
        converted(weights, torch.float32, torch.device("cpu")), **sizes, prepare=packed_linear
    ),
    "native-float32": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="float32"),
    "native-bfloat16": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="bfloat16"),
    "native-int8": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="int8"),
    "native-int6": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="int6"),
}


class ScriptedRunner(WrappedRunner):
    """Does what a script says before its n-th decode, in the engine's thread; fails for slots that are marked."""

    def __init__(self, inner: Any, script: dict[int, list[Callable[[], None]]]) -> None:
        super().__init__(inner)
        self.script = script
        self.num_decodes = 0
        self.marked: set[int] = set()

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        self.num_decodes += 1
        for step in [step for step in self.script if step <= self.num_decodes]:
            for action in self.script.pop(step):
                action()
        if self.marked & set(slots):
            failing, self.marked = self.marked & set(slots), set() if len(slots) <= 2 else self.marked
            raise RuntimeError(f"marked slots {failing}")
        return super().decode(slots, tokens, positions)


def random_params(draw: random.Random) -> GenerationParams:
    kind = draw.choice(["greedy", "top_k", "top_p", "free"])
    return params(
        description=draw.choice(["", "jazz", "slow dark ambient synth pads with a long soft choir", "rock guitar"]),
        duration_seconds=draw.choice([1.0, 1.3, 2.0]),
        seed=draw.randrange(2**40),
        use_sampling=kind != "greedy",
        top_k=draw.choice([1, 20, 250]) if kind == "top_k" else 0,
        top_p=draw.random() if kind == "top_p" else 0.0,
        temperature=draw.uniform(0.3, 1.5),
        cfg_coef=draw.choice([1.0, 3.0, 6.0]),
        audio_prompt=noise(draw.uniform(0.1, 0.9), seed=draw.randrange(9)) if draw.random() < 0.3 else None,
    )


@pytest.fixture
def cache(demo_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> OneModelEach:
    monkeypatch.setattr("audiocraft_api.engine.executor.make_decoder", lambda _: CodesDecoder())
    return OneModelEach(lambda name: demo_model(demo_checkpoints, name))


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_request_gives_the_same_codes_alone_and_in_any_company(cache: OneModelEach, runner: str) -> None:
    draw = random.Random(runner)
    make_backend = functools.partial(RUNNERS[runner])
    requests: list[EngineRequest] = []
    script: dict[int, list[Callable[[], None]]] = {}
    scripted: list[ScriptedRunner] = []

    def wrap(inner: Any) -> ScriptedRunner:
        scripted.append(ScriptedRunner(inner, script))
        return scripted[0]

    def submit(case: GenerationParams) -> None:
        requests.append(engine.submit(case))

    def cancel() -> None:
        draw.choice(requests).cancel()

    def mark() -> None:
        scripted[0].marked = {draw.randrange(scripted[0].num_slots)}

    for _ in range(NUM_REQUESTS - 1):
        case = random_params(draw)
        script.setdefault(draw.randrange(LAST_STEP), []).append(functools.partial(submit, case))
    for action in (cancel, cancel, mark):
        script.setdefault(draw.randrange(LAST_STEP), []).append(action)

    engine = BatchingEngine(cache, Config(max_batch_requests=4, precision="exact"), stepper_over(wrap, make_backend))
    first = engine.submit(params(duration_seconds=5.0))
    codes_of_or_none(first)
    for _ in range(LAST_STEP):
        if script:  # the first one was canceled, or the line ran dry, before the script's end
            codes_of_or_none(engine.submit(params(duration_seconds=3.0)))
    assert not script
    in_company = [codes_of_or_none(request) for request in requests]
    engine.close()

    single = BatchingEngine(
        cache, Config(max_batch_requests=1, precision="exact"), stepper_over(lambda r: r, make_backend)
    )
    assert sum(codes is not None for codes in in_company) >= NUM_REQUESTS // 2
    for request, codes in zip(requests, in_company, strict=True):
        if codes is not None:
            np.testing.assert_array_equal(codes, codes_of(single.submit(request.params)))
    single.close()


def codes_of_or_none(request: EngineRequest) -> Any:
    """Return the codes, or None when the history ended the request."""
    try:
        return codes_of(request)
    except (Canceled, GenerationFailed):
        return None
