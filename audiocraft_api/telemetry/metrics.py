"""The metrics of one process, in a registry of its own: some are counted here, others are read at each scrape.

Parts of the process that already keep their numbers (engine, models, queue) provide a source of readings, which is
read at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from audiocraft_api import __version__
from audiocraft_api.core.errors import AudioCraftError, LimitExceeded, PromptRefused, Unavailable
from audiocraft_api.tasks.task import FINAL_STATES
from audiocraft_api.tasks.webhooks import OUTCOMES
from audiocraft_api.telemetry.catalog import METRICS, MetricSpec, Place

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REFUSALS = (Unavailable, LimitExceeded, PromptRefused)
STEPS = ("loop", "separate", "convert", "store")
LIVE_ENDS = ("stopped", "limit", "paused", "idle", "quota", "draining", "disconnected", "failed")
STORES = ("audio", "tasks", "keys")


@dataclass(frozen=True)
class Distribution:
    """A histogram kept elsewhere: the number of values in each bucket, the number above the last one, and the sum."""

    counts: Sequence[int]  # one more than there are buckets
    total: float


@dataclass(frozen=True)
class Reading:
    """The value of one metric, by its name in the catalog."""

    name: str
    value: float | Distribution
    labels: tuple[str, ...] = ()


_FAMILIES: dict[str, Callable[..., MetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}

Source = Callable[[], Iterable[Reading]]


class Metrics:
    """The metrics that one process exposes. Thread-safe."""

    def __init__(self, place: Place) -> None:
        """`place` is the kind of this process: `servers` or `workers`."""
        # `_created` series would double the number of series, and restarts are visible without them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._specs = {spec.name: spec for spec in METRICS if spec.place in ("both", place)}
        self.http_requests = self._counter("http_requests_total")
        self.http_seconds = self._histogram("http_request_duration_seconds")
        self.errors = self._counter("errors_total")
        self.refusals = self._counter("refusals_total")
        self.task_ends = self._counter("task_ends_total")
        self.webhook_calls = self._counter("webhook_calls_total")
        self.queue_wait = self._histogram("queue_wait_seconds")
        self.generations = self._counter("generations_total")
        self.audio_seconds = self._counter("generated_audio_seconds_total")
        self.generation_seconds = self._counter("generation_seconds_total")
        self.real_time_factor = self._histogram("real_time_factor")
        self.first_audio = self._histogram("first_audio_seconds")
        self.step_seconds = self._histogram("step_seconds")
        self.storage_errors = self._counter("storage_errors_total")
        self.result_cache_hits = self._counter("result_cache_hits_total")
        self.result_cache_misses = self._counter("result_cache_misses_total")
        self.live_ends = self._counter("live_session_ends_total")
        self.live_change = self._histogram("live_change_seconds")
        self.live_underruns = self._counter("live_underruns_total")
        self._initialize_to_zero()
        self._readings = _Readings(list(self._specs.values()))
        self._registry.register(self._readings)
        self.read_from(lambda: [Reading("build_info", 1, (__version__,))])
        ProcessCollector(registry=self._registry)

    def read_from(self, source: Source) -> None:
        """Read `source` at each scrape. The source must not block."""
        self._readings.sources.append(source)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def count_error(self, code: str, *, is_refusal: bool = False) -> None:
        """Count an error response."""
        self.errors.labels(code).inc()
        if is_refusal:
            self.refusals.labels(code).inc()

    def _counter(self, name: str) -> Counter:
        spec, registry = self._claim(name)
        return Counter(spec.full_name, spec.help, spec.labels, registry=registry)

    def _histogram(self, name: str) -> Histogram:
        spec, registry = self._claim(name)
        return Histogram(spec.full_name, spec.help, spec.labels, buckets=spec.buckets, registry=registry)

    def _claim(self, name: str) -> tuple[MetricSpec, CollectorRegistry | None]:
        """Remove a metric from those read at a scrape. If only other processes expose it, return no registry."""
        if name in self._specs:
            return self._specs.pop(name), self._registry
        return next(spec for spec in METRICS if spec.name == name), None

    def _initialize_to_zero(self) -> None:
        """Expose every label value from the start, because Prometheus misses the first increase of a new series."""
        kinds = [AudioCraftError]
        for kind in kinds:
            self.errors.labels(kind.code)
            if issubclass(kind, REFUSALS):
                self.refusals.labels(kind.code)
            kinds += kind.__subclasses__()
        for counter, values in (
            (self.task_ends, sorted(FINAL_STATES)),
            (self.webhook_calls, OUTCOMES),
            (self.storage_errors, STORES),
            (self.step_seconds, STEPS),
            (self.live_ends, LIVE_ENDS),
        ):
            for value in values:
                counter.labels(value)


class _Readings(Collector):
    """Collects the readings of the sources into metric families."""

    def __init__(self, specs: Sequence[MetricSpec]) -> None:
        self.sources: list[Source] = []
        self._specs = specs

    def collect(self) -> Iterator[MetricFamily]:
        families = {spec.name: (spec, _family(spec)) for spec in self._specs}
        for source in self.sources:
            for reading in source():
                if reading.name in families:
                    _add(*families[reading.name], reading)
        yield from (family for _, family in families.values())

    def describe(self) -> Iterator[MetricFamily]:
        """Describe the families without reading the sources."""
        yield from (_family(spec) for spec in self._specs)


def _family(spec: MetricSpec) -> MetricFamily:
    return _FAMILIES[spec.kind](spec.full_name, spec.help, labels=spec.labels)


def _add(spec: MetricSpec, family: MetricFamily, reading: Reading) -> None:
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(reading.value, Distribution)
        bounds = [*map(str, spec.buckets), "+Inf"]
        family.add_metric(
            reading.labels,
            [(bound, float(count)) for bound, count in zip(bounds, accumulate(reading.value.counts), strict=True)],
            reading.value.total,
        )
    elif isinstance(family, (CounterMetricFamily, GaugeMetricFamily)):
        assert not isinstance(reading.value, Distribution)
        family.add_metric(reading.labels, float(reading.value))
