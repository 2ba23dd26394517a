"""The engine beside audiocraft's own loop, in one process on one model: seconds of work per second of audio, and tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from audiocraft_api.config import load_config
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.batching import BatchingEngine
from bench import shapes

DESCRIPTION = "warm analog synth arpeggio over a slow drum machine, 100 bpm"
WARMUP_SECONDS = 1.0


class LoadedOnce:
    """Leases one model that stays loaded, in the place of a cache."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @contextmanager
    def lease(self, _name: str) -> Iterator[Any]:
        yield self._model

    def on_unload(self, _listener: Any) -> None:
        pass

    def release_decoder_weights(self, _model: Any, _num_bytes: int) -> None:
        pass

    def evict(self, _model: Any) -> None:
        pass


class CodesDecoder:
    """A codec that leaves codes as they are, to compare them."""

    num_frames_wanted = 1

    def open(self) -> CodesDecoder:
        return self

    def feed(self, codes: Any, _final: bool = False) -> Any:
        return codes.numpy().astype(np.float32)

    def feed_many(self, feeds: Any) -> list[Any]:
        return [self.feed(codes) for _decoder, codes, _final in feeds]


def load(scale: str) -> Any:
    """Load the checkpoint of a scale through the service's own loading."""
    from audiocraft_api.model.catalog import Catalog
    from audiocraft_api.model.loading import load_model

    name = shapes.checkpoint(scale)
    config = load_config({}, models_file=shapes.models_file(), offline=True)
    catalog = Catalog(config)
    return load_model(catalog.get(name), catalog, config)


def params(model: Any, seconds: float) -> GenerationParams:
    return GenerationParams(model.spec.name, DESCRIPTION, duration_seconds=seconds, seed=1)


def audiocraft(model: Any, seconds: float) -> tuple[float, Any]:
    """Run audiocraft's own generation; return its seconds per second of audio, codec included, and its codes [K, T]."""
    model.generate_codes(params(model, 0.2), _ignore_progress)
    began = time.perf_counter()
    codes = model.generate_codes(params(model, seconds), _ignore_progress)
    model.decode_codes(codes)
    return (time.perf_counter() - began) / seconds, codes[0].numpy()


def ours(model: Any, precision: str, seconds: float) -> dict[str, float]:
    """Run one request on the batching engine; return its seconds per second of audio, codec included, and to first audio."""
    with _engine(model, precision) as engine:
        engine.submit(params(model, WARMUP_SECONDS)).result()
        began = time.perf_counter()
        request = engine.submit(params(model, seconds))
        next(request.chunks())
        first_audio = time.perf_counter() - began
        request.result()
        return {"s_per_s": (time.perf_counter() - began) / seconds, "first_audio_seconds": first_audio}


def codes_of(model: Any, precision: str, seconds: float) -> Any:
    """Return the codes [K, T] that the batching engine makes."""
    with (
        mock.patch("audiocraft_api.engine.executor.make_decoder", return_value=CodesDecoder()),
        _engine(model, precision) as engine,
    ):
        return engine.submit(params(model, seconds)).result().waveform.astype(np.int64)


def step_seconds(model: Any, precision: str, positions: tuple[int, ...], num_steps: int) -> list[float]:
    """Return the median time of one guided step with so many positions before it."""
    import torch

    from audiocraft_api.engine.precision import default_backend
    from audiocraft_api.engine.weights import decoder_weights

    runner = default_backend(decoder_weights(model.lm), precision, num_slots=2, capacity=1504)  # type: ignore[arg-type]
    cond, _null = model.condition_tensors(DESCRIPTION)
    runner.begin(0, cond["description"][0][0])
    runner.begin(1, None)
    past = torch.randint(model.codebook_size, (model.num_codebooks, max(positions)))
    for slot in (0, 1):  # real keys and values: memory never written would be read for nothing
        runner.prefill(slot, 0, None, past)
    tokens = torch.zeros(2, model.num_codebooks, dtype=torch.long)
    times: list[list[float]] = [[] for _ in positions]
    for _ in range(num_steps):  # in turn, so that both see the same machine
        for index, position in enumerate(positions):
            began = time.perf_counter()
            runner.decode([0, 1], tokens, [position, position])
            times[index].append(time.perf_counter() - began)
    runner.close()
    return [statistics.median(each) for each in times]


def at_once(model: Any, precision: str, seconds: float, num_requests: int) -> float:
    """Run many requests together; return seconds of audio made per second of time, codec included."""
    with _engine(model, precision, max_batch_requests=num_requests, max_waiting=num_requests) as engine:
        for run_seconds in (WARMUP_SECONDS, seconds):
            began = time.perf_counter()
            requests = [engine.submit(params(model, run_seconds)) for _ in range(num_requests)]
            for request in requests:
                request.result()
        return num_requests * seconds / (time.perf_counter() - began)


@contextmanager
def _engine(model: Any, precision: str, **settings: Any) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(LoadedOnce(model), load_config({}, precision=precision, **settings))  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


def _ignore_progress(_done: int, _total: int) -> None:
    pass
