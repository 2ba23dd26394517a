"""Checks of captured CUDA graphs, which the benchmark makes before it measures: equal codes, and too little memory.

On other devices the same steps run without capture, so the checks show only that this code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.core.params import GenerationParams, Segment
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.cuda.graph_runner import CudaGraphRunner
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.weights import converted, decoder_weights
from bench import engine

SECONDS = 120.0  # limit of every wait
BATCH = 5
LEFT_BYTES = 32 * 2**20  # of memory during the capture that is short of it

RunnerFactory = Callable[[Any, EngineSettings], CudaGraphRunner]


def runner_factory(*, capture: bool) -> RunnerFactory:
    """Return a factory of the runner for GPUs, which runs on any device without capture."""

    def make(model: Any, config: EngineSettings) -> CudaGraphRunner:
        weights = decoder_weights(model.lm)
        pattern = DelayPattern(model.lm.pattern_provider.delays, model.special_token_id)
        return CudaGraphRunner(
            converted(weights, weights.heads[0].dtype, model.device),
            pattern,
            max_batch_size=config.max_batch_requests,
            max_prefix=0,
            num_columns=pattern.num_columns(model.max_window_frames),
            capture=capture,
        )

    return make


def graphs_equal_eager_steps(model: Any) -> None:
    """Check that replaying a captured step gives the codes of the same step run eagerly, bit for bit."""
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):  # as for a capture, which restores them
        with _codes_engine(model, capture=_has_graphs(model)) as captured:
            found = [_codes(captured.submit(case)) for case in _cases(model)]
        with _codes_engine(model, capture=False) as eager:
            expected = [_codes(eager.submit(case)) for case in _cases(model)]
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        _require_equal(ours, theirs, f"case {number}: graph and eager step")


def batches_change_nothing(model: Any) -> None:
    """Check that a request gives the same codes alone and beside others."""
    with _codes_engine(model, capture=_has_graphs(model)) as opened:
        alone = [_codes(opened.submit(case)) for case in _cases(model)]
        requests = [opened.submit(case) for case in _cases(model)]
        for number, (expected, request) in enumerate(zip(alone, requests, strict=True)):
            _require_equal(_codes(request), expected, f"case {number}: in a batch and alone")
    if np.array_equal(alone[0], alone[1]):
        raise AssertionError("Requests with different seeds gave the same codes.")


def short_memory_fails_one_request(model: Any) -> str:
    """Check that an engine that could not capture a step for lack of memory works once there is memory again.

    Returns what became of the request meanwhile.
    """
    short, longer = _cases(model)[0], engine.params(model, 7.0)  # longer: another graph
    with _codes_engine(model, capture=True) as opened:
        expected = _codes(opened.submit(longer))
    with _codes_engine(model, capture=True) as opened:
        before = _codes(opened.submit(short))
        with _memory_taken(model.device):
            try:
                _require_equal(_codes(opened.submit(longer)), expected, "with little memory and with enough")
                outcome = "completed"
            except AudioCraftError as error:
                outcome = f"failed with {type(error).__name__}"
        _require_equal(_codes(opened.submit(longer)), expected, "after the shortage and without one")
        _require_equal(_codes(opened.submit(short)), before, "after the shortage and before it")
    return outcome


@contextmanager
def _memory_taken(device: torch.device) -> Iterator[None]:
    """Take all of the device's memory but `LEFT_BYTES`."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, _total = torch.cuda.mem_get_info(device)
    taken = torch.empty(max(0, free - LEFT_BYTES), dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()


@contextmanager
def _codes_engine(model: Any, *, capture: bool) -> Iterator[BatchingEngine]:
    """Open an engine for `BATCH` requests whose waveforms are codes."""
    with engine.opened_engine(
        model,
        "auto",
        codec_factory=lambda _codec: engine.CodesCodec(),
        model_runner_factory=runner_factory(capture=capture),
        max_batch_requests=BATCH,
    ) as opened:
        yield opened


def _has_graphs(model: Any) -> bool:
    return bool(model.device.type == "cuda")


def _cases(model: Any) -> list[GenerationParams]:
    name = model.spec.name
    return [
        GenerationParams(name, "warm jazz piano", 1.0, seed=1),
        GenerationParams(name, "warm jazz piano", 1.0, seed=2),
        GenerationParams(name, "", 0.6, seed=1),
        GenerationParams(name, "a slow song", 0.8, seed=3, top_k=0, top_p=0.9, cfg_coef=6.0),
        GenerationParams(
            name, "", 1.0, seed=4, segments=(Segment("jazz", 0.4), Segment("a choir", 0.6, "drums and a bass"))
        ),
    ]


def _codes(request: Any) -> Any:
    return request.result(SECONDS).waveform.astype(np.int64)


def _require_equal(found: Any, expected: Any, what: str) -> None:
    if found.shape != expected.shape or not np.array_equal(found, expected):
        raise AssertionError(f"The codes differ, {what}.")
