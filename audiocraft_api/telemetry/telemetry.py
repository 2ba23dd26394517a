"""Observes the service and records metrics and, if a collector is configured, traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.config.telemetry import TelemetrySettings
from audiocraft_api.core.observer import Observer
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.telemetry.catalog import Place
from audiocraft_api.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audiocraft_api.telemetry.tracing import Tracing


class Telemetry(Observer):
    """The metrics and traces of a server or of a Celery worker. Thread-safe."""

    def __init__(self, place: Place, config: Config) -> None:
        self.metrics = Metrics(place)
        self.tracing = _create_tracing(config.telemetry)

    def generation_started(self, request: EngineRequest) -> None:
        """Count the generation when it ends, and trace it as a child of the current span."""
        request.add_done_callback(self._count_generation)
        if self.tracing is not None:
            request.add_done_callback(self.tracing.generation())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure and trace a step."""
        started = time.perf_counter()
        with self.tracing.step(name) if self.tracing else nullcontext():
            yield
        self.metrics.step_seconds.labels(name).observe(time.perf_counter() - started)

    def cache_lookup(self, *, hit: bool) -> None:
        """Count a lookup in the result cache."""
        (self.metrics.result_cache_hits if hit else self.metrics.result_cache_misses).inc()

    @contextmanager
    def task(self, task_id: str, attempt: int, traceparent: str | None) -> Iterator[None]:
        """Trace a task."""
        with self.tracing.task(task_id, attempt, traceparent) if self.tracing else nullcontext():
            yield

    def task_ended(self, state: str) -> None:
        """Count a finished task."""
        self.metrics.task_ends.labels(state).inc()

    def webhook_called(self, outcome: str) -> None:
        """Count an attempt to deliver a webhook."""
        self.metrics.webhook_calls.labels(outcome).inc()

    def trace(self) -> str | None:
        """Return the current span as a `traceparent`, or None without tracing."""
        return self.tracing.traceparent() if self.tracing else None

    def storage_failed(self, store: str) -> None:
        """Count a failed operation of a store."""
        self.metrics.storage_errors.labels(store).inc()

    def close(self) -> None:
        """Send the remaining traces, within a bounded time."""
        if self.tracing is not None:
            self.tracing.close()

    def _count_generation(self, request: EngineRequest) -> None:
        metrics, model, times, info = self.metrics, request.params.model, request.times, request.audio_info
        assert times.ended is not None
        metrics.generations.labels(model, request.error.code if request.error else "finished").inc()
        if times.begun is None or info is None:
            return
        metrics.queue_wait.labels(model).observe(times.begun - times.submitted)
        if times.first_audio is not None:
            metrics.first_audio.labels(model).observe(times.first_audio - times.submitted)
        if request.error is None:
            audio_seconds = info.num_samples / info.sample_rate
            run_seconds = times.ended - times.begun
            metrics.audio_seconds.labels(model).inc(audio_seconds)
            metrics.generation_seconds.labels(model).inc(run_seconds)
            metrics.real_time_factor.labels(model).observe(audio_seconds / max(run_seconds, 1e-6))


def _create_tracing(config: TelemetrySettings) -> Tracing | None:
    if not config.otlp_endpoint:
        return None
    from audiocraft_api.telemetry.tracing import Tracing

    return Tracing(config)
