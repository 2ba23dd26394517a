"""Sources of metrics that are read at each scrape, because other parts of the process already keep their values."""

from __future__ import annotations

from collections.abc import Iterator

from audiocraft_api.access.request_slots import RequestSlots
from audiocraft_api.access.stream_slots import StreamSlots
from audiocraft_api.core.engine import Engine
from audiocraft_api.live.sessions import LiveSessions
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.tasks.monitor import QueueMonitor
from audiocraft_api.telemetry.health import Health
from audiocraft_api.telemetry.metrics import Distribution, Reading, Source


def engine_metrics(engine: Engine, cache: ModelCache, max_waiting: int) -> Source:
    """Read the engine and the models of this process. `max_waiting` is the capacity of the engine's queue."""

    def read() -> Iterator[Reading]:
        status = engine.status()
        yield Reading("engine_waiting_requests", status.num_waiting)
        yield Reading("engine_running_requests", status.num_running)
        yield Reading("max_waiting_requests", max_waiting)
        yield Reading("engine_up", int(status.is_alive))
        yield Reading("engine_stalled_seconds", max((model.stalled_seconds for model in status.models), default=0.0))
        for model in status.models:
            labels, counts = (model.model,), model.counts
            yield Reading("batch_rows", Distribution(counts.steps_by_rows, counts.num_rows), labels)
            yield Reading("decode_seconds_total", counts.seconds, labels)
            yield Reading("kv_cache_bytes", model.kv_cache_bytes, labels)
            yield Reading("kv_cache_used_bytes", model.kv_cache_used_bytes, labels)
        yield Reading("models_loaded", len(cache.loaded_names()))
        for name, num_bytes in cache.memory().items():
            yield Reading("model_memory_bytes", num_bytes, (name,))

    return read


def health_metrics(health: Health) -> Source:
    """Read whether this process is ready."""
    return lambda: [Reading("ready", int(health.is_ready))]


def queue_metrics(monitor: QueueMonitor, max_queued: int) -> Source:
    """Read the task queue. Servers that use the same store report the same numbers."""

    def read() -> Iterator[Reading]:
        yield Reading("queued_tasks", monitor.status.num_queued)
        yield Reading("processing_tasks", monitor.status.num_processing)
        yield Reading("max_queued_tasks", max_queued)

    return read


def concurrency_metrics(requests: RequestSlots, streams: StreamSlots, live: LiveSessions) -> Source:
    """Read the number of threads that wait for a generation or serve a stream."""

    def read() -> Iterator[Reading]:
        yield Reading("waiting_synchronous_requests", requests.num_waiting)
        yield Reading("max_synchronous_requests", requests.capacity)
        yield Reading("open_streams", streams.num_open)
        yield Reading("max_streams", streams.capacity)
        yield Reading("live_sessions", live.num_open)

    return read
