"""Parts for tests of the batching engine: real models, a lease without a cache, and codes in place of audio."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocraft_api.config import Config
from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.params import AudioInput, GenerationParams, Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine import precision
from audiocraft_api.engine.batching import BatchingEngine
from audiocraft_api.engine.delay import DelayPattern
from audiocraft_api.engine.model_runner import ModelRunner
from audiocraft_api.engine.weights import converted, decoder_weights
from audiocraft_api.model import demo
from audiocraft_api.model.catalog import Catalog
from bench import untrained

SECONDS = 120.0  # limit of every wait


class CodesCodec:
    """A codec that returns codes unchanged: the engine's waveform is then the codes [K, T]."""

    def new_decoder(self) -> CodesCodec:
        return self

    def feed(self, codes: Tensor, final: bool = False) -> Waveform:  # noqa: ARG002
        return codes.numpy().astype(np.float32)

    def feed_many(self, feeds: Sequence[tuple[Any, Tensor, bool]]) -> list[Waveform]:
        return [self.feed(codes, final) for _, codes, final in feeds]


class LoadedModels:
    """Leases models that stay loaded. Calls `load` once for each name."""

    device = "cpu"

    def __init__(self, load: Callable[[str], Any]) -> None:
        self._load = functools.cache(load)
        self.num_leases = 0
        self.unload: Callable[[str], None]

    @contextmanager
    def lease(self, name: str) -> Iterator[Any]:
        model = self._load(name)
        self.num_leases += 1
        try:
            yield model
        finally:
            self.num_leases -= 1

    def release_decoder_weights(self, model: Any, num_bytes: int) -> None:
        """Keep all weights, because the reference implementation needs them."""

    def evict(self, model: Any) -> None:
        pass

    def free_memory(self) -> None:
        pass

    def on_unload(self, listener: Callable[[str], None]) -> None:
        self.unload = listener


def codes_engine(cache: Any, **settings: Any) -> BatchingEngine:
    """Return an engine in precision `exact`, or as `settings` say, whose waveforms are codes."""
    factory = settings.pop("model_runner_factory", None)
    config = Config(**({"precision": "exact"} | settings)).engine
    return BatchingEngine(cache, config, model_runner_factory=factory, codec_factory=lambda _: CodesCodec())


def eager_runner(model: Any, config: EngineSettings) -> ModelRunner:
    """Return the runner of GPUs in float32 on the CPU, without captured graphs. A `model_runner_factory`."""
    from audiocraft_api.engine.cuda.graph_runner import CudaGraphRunner

    weights = converted(decoder_weights(model.lm), torch.float32, torch.device("cpu"))
    pattern = DelayPattern(model.lm.pattern_provider.delays, model.special_token_id)
    return CudaGraphRunner(
        weights,
        pattern,
        max_batch_size=config.max_batch_requests,
        max_prefix=512 if model.has_melody else 0,
        num_columns=pattern.num_columns(model.max_window_frames),
        capture=False,
    )


def join_engine_threads() -> None:
    """Wait until the threads of all engines have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("engine-"):
            thread.join(SECONDS)
            assert not thread.is_alive()


@functools.cache
def demo_model(directory: Path, name: str) -> Any:
    """Return a demo checkpoint, loaded once for all tests."""
    demo.build(name, directory, untrained.write)
    from audiocraft_api.model.loading import load_model

    config = Config(checkpoints_dir=directory, device="cpu")
    catalog = Catalog(config)
    return load_model(catalog.get(name), catalog, config)


@functools.cache
def short_window_model(directory: Path, name: str) -> Any:
    """Return a demo checkpoint whose longest window is 19 s. audiocraft does not build a model with less."""
    from audiocraft_api.model.audiocraft_adapter import LoadedModel

    model = demo_model(directory, name)
    lm = copy.copy(model.lm)
    lm.__dict__["cfg"] = copy.deepcopy(model.lm.cfg)
    lm.cfg.dataset.segment_duration = 19
    return LoadedModel(model.spec, model.revision, lm, model._inner_codec)


def reference_codes(model: Any, params: GenerationParams) -> np.ndarray[Any, Any]:
    """Return the codes [K, T] of audiocraft's own loop."""
    codes = model.generate_codes(params, lambda *_: None)[0].numpy()
    assert isinstance(codes, np.ndarray)
    return codes


def assert_same_codes(engine: BatchingEngine, cache: LoadedModels, cases: list[GenerationParams]) -> None:
    """Check that requests decoded in one batch of a `codes_engine` get the codes of the reference loop."""
    requests = [engine.submit(case) for case in cases]
    for case, request in zip(cases, requests, strict=True):
        codes = wait_for_codes(request)
        with cache.lease(case.model) as model:
            expected = reference_codes(model, case)
        assert codes.shape == expected.shape
        assert np.array_equal(codes, expected), f"first different frame: {np.argmax((codes != expected).any(0))}"


def params(model: str = "demo", **changes: Any) -> GenerationParams:
    defaults = {"model": model, "description": "warm jazz piano", "duration_seconds": 2.0, "seed": 5}
    return GenerationParams(**(defaults | changes))


def noise(seconds: float, seed: int = 0) -> AudioInput:
    generator = np.random.default_rng(seed)
    return AudioInput((0.1 * generator.standard_normal((1, int(32_000 * seconds)))).astype(np.float32), 32_000)


def wait_for_codes(request: EngineRequest) -> np.ndarray[Any, Any]:
    """Wait for a request of a `codes_engine` and return its codes [K, T]."""
    return request.result(SECONDS).waveform.astype(np.int64)


class WrappedBackend:
    """A backend that delegates to another. Tests override some of its methods."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.num_slots, self.capacity = inner.num_slots, inner.capacity
        self.precision = inner.precision
        self.own_weight_bytes = inner.own_weight_bytes

    def begin(self, slot: int, context: Tensor | None) -> None:
        self.inner.begin(slot, context)

    def blend(self, slot: int, parts: Sequence[tuple[Tensor, float]]) -> None:
        self.inner.blend(slot, parts)

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        return self.inner.prefill(slot, position, prefix, tokens)

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        return self.inner.decode(slots, tokens, positions)

    def release(self, slot: int) -> None:
        self.inner.release(slot)

    def close(self) -> None:
        self.inner.close()


def runner_over(wrap: Callable[[Any], Any], make_backend: Callable[..., Any] = precision.default_backend) -> Any:
    """Return a `model_runner_factory` whose backend is `wrap(backend)`."""

    def make_model_runner(model: Any, config: EngineSettings) -> ModelRunner:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrap(make_backend(*args, **kwargs))

        return precision.make_model_runner(model, config, wrapped)

    return make_model_runner
