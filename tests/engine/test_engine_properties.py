"""A request's codes do not depend on concurrent requests: random scripts from fixed seeds, on every backend."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiocraft_api.core.errors import Canceled, GenerationFailed
from audiocraft_api.core.params import GenerationParams, Segment
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.cpu.native_backend import NativeBackend
from audiocraft_api.engine.torch_backend import TorchBackend, packed_linear
from audiocraft_api.engine.weights import converted
from support.engines import LoadedModels, WrappedBackend, codes_engine, noise, params, runner_over, wait_for_codes

NUM_REQUESTS = 12
LAST_STEP = 120

BACKENDS: dict[str, Callable[..., Any]] = {
    "torch": lambda weights, _, **sizes: TorchBackend(weights, **sizes),
    # In float32, as the engine uses it: few processors pack half precision.
    "torch-packed": lambda weights, _, **sizes: TorchBackend(
        converted(weights, torch.float32, torch.device("cpu")), **sizes, make_linear=packed_linear
    ),
    "native-float32": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="float32"),
    "native-bfloat16": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="bfloat16"),
    "native-int8": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="int8"),
    "native-int6": lambda weights, _, **sizes: NativeBackend(weights, **sizes, weight_format="int6"),
}


class ScriptedBackend(WrappedBackend):
    """Runs a script's actions before its n-th decode, in the engine's thread, and fails for marked slots."""

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


def random_segments(draw: random.Random, duration_seconds: float) -> tuple[Segment, ...]:
    times = sorted(draw.uniform(0.1, duration_seconds) for _ in range(draw.randrange(1, 4)))
    bounds = [0.0, *times, duration_seconds]
    texts = ["jazz", "slow dark ambient synth pads with a long soft choir", "rock guitar"]
    return tuple(
        Segment(draw.choice(texts), end - start, draw.choice([None, None, "drums"])) for start, end in pairwise(bounds)
    )


def random_params(draw: random.Random) -> GenerationParams:
    kind = draw.choice(["greedy", "top_k", "top_p", "free"])
    duration_seconds = draw.choice([1.0, 1.3, 2.0])
    return params(
        description=draw.choice(["", "jazz", "slow dark ambient synth pads with a long soft choir", "rock guitar"]),
        duration_seconds=duration_seconds,
        segments=random_segments(draw, duration_seconds) if draw.random() < 0.4 else (),
        seed=draw.randrange(2**40),
        use_sampling=kind != "greedy",
        top_k=draw.choice([1, 20, 250]) if kind == "top_k" else 0,
        top_p=draw.random() if kind == "top_p" else 0.0,
        temperature=draw.uniform(0.3, 1.5),
        cfg_coef=draw.choice([1.0, 3.0, 6.0]),
        negative_description=draw.choice([None, None, "drums", "loud distorted electric guitars and drums"]),
        audio_prompt=noise(draw.uniform(0.1, 0.9), seed=draw.randrange(9)) if draw.random() < 0.3 else None,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_gives_the_same_codes_alone_and_in_any_batch(cache: LoadedModels, backend: str) -> None:
    draw = random.Random(backend)
    make_backend = BACKENDS[backend]
    requests: list[EngineRequest] = []
    script: dict[int, list[Callable[[], None]]] = {}
    scripted: list[ScriptedBackend] = []

    def wrap(inner: Any) -> ScriptedBackend:
        scripted.append(ScriptedBackend(inner, script))
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

    engine = codes_engine(cache, max_batch_requests=4, model_runner_factory=runner_over(wrap, make_backend))
    first = engine.submit(params(duration_seconds=5.0))
    codes_of_or_none(first)
    for _ in range(LAST_STEP):
        if script:  # the first request was canceled, or the queue ran empty, before the end of the script
            codes_of_or_none(engine.submit(params(duration_seconds=3.0)))
    assert not script
    in_batch = [codes_of_or_none(request) for request in requests]
    engine.close()

    single = codes_engine(cache, max_batch_requests=1, model_runner_factory=runner_over(lambda b: b, make_backend))
    assert sum(codes is not None for codes in in_batch) >= NUM_REQUESTS // 2
    for request, codes in zip(requests, in_batch, strict=True):
        if codes is not None:
            np.testing.assert_array_equal(codes, wait_for_codes(single.submit(request.params)))
    single.close()


def codes_of_or_none(request: EngineRequest) -> Any:
    """Return the codes, or None if the script canceled the request or made it fail."""
    try:
        return wait_for_codes(request)
    except (Canceled, GenerationFailed):
        return None
