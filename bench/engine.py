"""Compares the engine with audiocraft's own loop and transformers' MusicGen, in one process: times and tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from audiocraft_api.config import load_config
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.engine.batching import BatchingEngine
from bench import shapes

DESCRIPTION = "warm analog synth arpeggio over a slow drum machine, 100 bpm"
WARMUP_SECONDS = 1.0


class LoadedModel:
    """Leases one model that stays loaded, in place of a model cache."""

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

    def free_memory(self) -> None:
        pass


class CodesCodec:
    """A codec that returns codes unchanged, so that they can be compared."""

    def new_decoder(self) -> CodesCodec:
        return self

    def feed(self, codes: Any, _final: bool = False) -> Any:
        return codes.numpy().astype(np.float32)

    def feed_many(self, feeds: Any) -> list[Any]:
        return [self.feed(codes) for _decoder, codes, _final in feeds]


def load(scale: str) -> Any:
    """Load the checkpoint of a scale as the service does."""
    from audiocraft_api.model.catalog import Catalog
    from audiocraft_api.model.loading import load_model

    name = shapes.checkpoint(scale)
    config = load_config({}, models_file=shapes.models_file(), offline=True)
    catalog = Catalog(config)
    return load_model(catalog.get(name), catalog, config)


def params(model: Any, seconds: float) -> GenerationParams:
    stride = model.spec.extend_stride_seconds
    return GenerationParams(model.spec.name, DESCRIPTION, seconds, seed=1, extend_stride_seconds=stride)


def audiocraft(model: Any, seconds: float) -> tuple[float, Any]:
    """Run audiocraft's own generation; return its seconds per second of audio, with codec, and its codes [K, T]."""
    model.generate_codes(params(model, 0.2), _ignore_progress)
    begin = time.perf_counter()
    codes = model.generate_codes(params(model, seconds), _ignore_progress)
    model.decode_codes(codes)
    return (time.perf_counter() - begin) / seconds, codes[0].numpy()


def transformers_peers(scale: str, seconds: float) -> dict[str, float]:
    """Return the time per second of audio, with codec, of transformers' MusicGen on the CPU, by name of the peer."""
    import torch

    from bench import transformers_peer

    device, types = torch.device("cpu"), (torch.float32, torch.bfloat16)
    names = [f"transformers_{str(dtype).removeprefix('torch.')}" for dtype in types]
    times = [transformers_peer.seconds_per_second(scale, device, dtype, seconds) for dtype in types]
    return dict(zip(names, times, strict=True))


def batching(model: Any, precision: str, seconds: float, **parts: Any) -> dict[str, float]:
    """Run one request on the batching engine; return its time per second of audio, with codec, and to first audio."""
    with opened_engine(model, precision, **parts) as engine:
        engine.submit(params(model, WARMUP_SECONDS)).result()
        begin = time.perf_counter()
        request = engine.submit(params(model, seconds))
        next(request.chunks())
        first_audio = time.perf_counter() - begin
        request.result()
        return {"s_per_s": (time.perf_counter() - begin) / seconds, "first_audio_seconds": first_audio}


def codes_of(model: Any, precision: str, seconds: float) -> Any:
    """Return the codes [K, T] that the batching engine generates."""
    with opened_engine(model, precision, codec_factory=lambda _: CodesCodec()) as engine:
        return engine.submit(params(model, seconds)).result().waveform.astype(np.int64)


def step_seconds(model: Any, precision: str, positions: tuple[int, ...], num_steps: int) -> list[float]:
    """Return the median time of one guided step after each of these numbers of positions."""
    import torch

    from audiocraft_api.engine.precision import default_backend
    from audiocraft_api.engine.weights import decoder_weights

    backend = default_backend(decoder_weights(model.lm), precision, num_slots=2, capacity=1504)  # type: ignore[arg-type]
    cond, _uncond = model.condition_tensors(DESCRIPTION)
    backend.begin(0, cond["description"][0][0])
    backend.begin(1, None)
    past = torch.randint(model.codebook_size, (model.num_codebooks, max(positions)))
    for slot in (0, 1):  # real keys and values: reading memory that was never written is free
        backend.prefill(slot, 0, None, past)
    tokens = torch.zeros(2, model.num_codebooks, dtype=torch.long)
    times: list[list[float]] = [[] for _ in positions]
    for _ in range(num_steps):  # alternating, so that the machine is in the same state for all
        for index, position in enumerate(positions):
            begin = time.perf_counter()
            backend.decode([0, 1], tokens, [position, position])
            times[index].append(time.perf_counter() - begin)
    backend.close()
    return [statistics.median(each) for each in times]


def at_once(model: Any, precision: str, seconds: float, num_requests: int, **parts: Any) -> float:
    """Run many requests together; return seconds of audio per second of time, with codec."""
    settings: dict[str, Any] = {"max_batch_requests": num_requests, "max_waiting": num_requests, **parts}
    with opened_engine(model, precision, **settings) as engine:
        for run_seconds in (WARMUP_SECONDS, seconds):
            begin = time.perf_counter()
            requests = [engine.submit(params(model, run_seconds)) for _ in range(num_requests)]
            for request in requests:
                request.result()
        return num_requests * seconds / (time.perf_counter() - begin)


@contextmanager
def opened_engine(
    model: Any, precision: str, codec_factory: Any = None, model_runner_factory: Any = None, **settings: Any
) -> Iterator[BatchingEngine]:
    """Open an engine for one model, which the caller has loaded."""
    config = load_config({}, precision=precision, **settings).engine
    models: Any = LoadedModel(model)
    engine = BatchingEngine(models, config, model_runner_factory=model_runner_factory, codec_factory=codec_factory)
    try:
        yield engine
    finally:
        engine.close()


def _ignore_progress(_done: int, _total: int) -> None:
    pass
