"""What one process tells its operator: listens to the service, and feeds metrics and, where they are wanted, traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from audiocraft_api.config import Config
from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.core.observer import Observer
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.telemetry.catalog import Place
from audiocraft_api.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audiocraft_api.telemetry.tracing import Tracing

Store = TypeVar("Store")


class Telemetry(Observer):
    """The metrics and the traces of a server or of a worker."""

    def __init__(self, place: Place, config: Config) -> None:
        self.metrics = Metrics(place)
        self.tracing = _tracing(config)

    def generation_started(self, request: EngineRequest) -> None:
        """Count the generation when it ends, and trace it under what this thread does now."""
        request.add_done_callback(self._count_generation)
        if self.tracing is not None:
            request.add_done_callback(self.tracing.generation())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        begun = time.perf_counter()
        with self.tracing.step(name) if self.tracing else nullcontext():
            yield
        self.metrics.step_seconds.labels(name).observe(time.perf_counter() - begun)

    def cache_lookup(self, *, hit: bool) -> None:
        """Count it."""
        (self.metrics.result_cache_hits if hit else self.metrics.result_cache_misses).inc()

    @contextmanager
    def task(self, task_id: str, attempt: int, traceparent: str | None) -> Iterator[None]:
        """Trace a task."""
        with self.tracing.task(task_id, attempt, traceparent) if self.tracing else nullcontext():
            yield

    def task_ended(self, state: str) -> None:
        """Count it."""
        self.metrics.task_ends.labels(state).inc()

    def webhook_called(self, outcome: str) -> None:
        """Count it."""
        self.metrics.webhook_calls.labels(outcome).inc()

    def trace(self) -> str | None:
        """Return the current trace, None where none are made."""
        return self.tracing.traceparent() if self.tracing else None

    def counting_errors(self, store: Store, name: str) -> Store:
        """Return a store, whichever its interface, that counts what it could not do under `name`."""
        return cast(Store, _CountingStore(store, self.metrics.storage_errors.labels(name).inc))

    def close(self) -> None:
        """Send the last traces, if that is soon done."""
        if self.tracing is not None:
            self.tracing.close()

    def _count_generation(self, request: EngineRequest) -> None:
        metrics, model, times, outline = self.metrics, request.params.model, request.times, request.audio_info
        assert times.ended is not None
        metrics.generations.labels(model, request.error.code if request.error else "finished").inc()
        if times.begun is None or outline is None:
            return
        metrics.queue_wait.labels(model).observe(times.begun - times.submitted)
        if times.first_audio is not None:
            metrics.first_audio.labels(model).observe(times.first_audio - times.submitted)
        if request.error is None:
            audio_seconds = outline.num_samples / outline.sample_rate
            run_seconds = times.ended - times.begun
            metrics.audio_seconds.labels(model).inc(audio_seconds)
            metrics.generation_seconds.labels(model).inc(run_seconds)
            metrics.real_time_factor.labels(model).observe(audio_seconds / max(run_seconds, 1e-6))


class _CountingStore:
    """Hands every call on."""

    def __init__(self, store: object, count: Callable[[], None]) -> None:
        self._store = store
        self._count = count

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not callable(value):
            return value
        call = partial(self._call, value)
        setattr(self, name, call)  # the next look-up finds it
        return call

    def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except StorageUnavailable:
            self._count()
            raise


def _tracing(config: Config) -> Tracing | None:
    if not config.telemetry.otlp_endpoint:
        return None
    from audiocraft_api.telemetry.tracing import Tracing

    return Tracing(config)
