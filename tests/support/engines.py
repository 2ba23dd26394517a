"""Parts for tests of the batching engine: real models, a lease without a cache, and codes in place of sound."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from audiocraft_api.config import Config
from audiocraft_api.core.params import AudioInput, GenerationParams, Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine import precision
from audiocraft_api.engine.model_runner import ModelRunner
from audiocraft_api.model import demo
from audiocraft_api.model.catalog import Catalog

SECONDS = 120.0  # deadline of every wait


class CodesDecoder:
    """A codec that leaves codes as they are: the engine's waveform is then [K, T] of codes."""

    num_frames_wanted = 1

    def open(self) -> CodesDecoder:
        return self

    def feed(self, codes: Tensor, final: bool = False) -> Waveform:  # noqa: ARG002
        return codes.numpy().astype(np.float32)

    def feed_many(self, feeds: Sequence[tuple[CodesDecoder, Tensor, bool]]) -> list[Waveform]:
        return [decoder.feed(codes, final) for decoder, codes, final in feeds]


class OneModelEach:
    """Leases models that stay loaded; `loads` is called once for each name."""

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
        """Keep the model whole, for its twin."""

    def evict(self, model: Any) -> None:
        pass

    def on_unload(self, listener: Callable[[str], None]) -> None:
        self.unload = listener


@functools.cache
def demo_model(directory: Path, name: str) -> Any:
    """Return a demo checkpoint, loaded once for all tests."""
    demo.build(name, directory)
    from audiocraft_api.model.loading import load_model

    config = Config(checkpoints_dir=directory, device="cpu")
    catalog = Catalog(config)
    return load_model(catalog.get(name), catalog, config)


@functools.cache
def short_window_model(directory: Path, name: str) -> Any:
    """Return a demo checkpoint whose longest window is 19 s; with less, audiocraft does not build it."""
    from audiocraft_api.model.audiocraft_adapter import LoadedModel

    model = demo_model(directory, name)
    lm = copy.copy(model.lm)
    lm.__dict__["cfg"] = copy.deepcopy(model.lm.cfg)
    lm.cfg.dataset.segment_duration = 19
    return LoadedModel(model.spec, model.revision, lm, model.codec)


def reference_codes(model: Any, params: GenerationParams) -> np.ndarray[Any, Any]:
    """Return the codes [K, T] of audiocraft's own loop."""
    codes = model.generate_codes(params, lambda *_: None)[0].numpy()
    assert isinstance(codes, np.ndarray)
    return codes


def params(model: str = "demo", **changes: Any) -> GenerationParams:
    defaults = {"model": model, "description": "warm jazz piano", "duration_seconds": 2.0, "seed": 5}
    return GenerationParams(**(defaults | changes))


def noise(seconds: float, seed: int = 0) -> AudioInput:
    generator = np.random.default_rng(seed)
    return AudioInput((0.1 * generator.standard_normal((1, int(32_000 * seconds)))).astype(np.float32), 32_000)


def codes_of(request: EngineRequest) -> np.ndarray[Any, Any]:
    """Wait for a request of an engine with `CodesDecoder` and return its codes [K, T]."""
    return request.result(SECONDS).waveform.astype(np.int64)


class WrappedRunner:
    """A runner that does what another does; tests override a method or two."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.num_slots, self.capacity = inner.num_slots, inner.capacity
        self.own_weight_bytes = inner.own_weight_bytes

    def begin(self, slot: int, context: Tensor | None) -> None:
        self.inner.begin(slot, context)

    def prefill(self, slot: int, position: int, prefix: Tensor | None, tokens: Tensor) -> Tensor:
        return self.inner.prefill(slot, position, prefix, tokens)

    def decode(self, slots: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> Tensor:
        return self.inner.decode(slots, tokens, positions)

    def release(self, slot: int) -> None:
        self.inner.release(slot)

    def close(self) -> None:
        self.inner.close()


def stepper_over(wrap: Callable[[Any], Any], make_backend: Callable[..., Any] = precision.default_backend) -> Any:
    """Return a `make_model_runner` whose runner is `wrap(runner)`."""

    def make_model_runner(model: Any, config: Config) -> ModelRunner:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrap(make_backend(*args, **kwargs))

        return precision.make_model_runner(model, config, wrapped)

    return make_model_runner
