"""Spans of requests, generations and tasks, sent to an OpenTelemetry collector.

The queue of unsent spans is bounded, and an unreachable collector delays neither requests nor the end of the process.
Spans contain no prompts, paths or keys. Knows nothing of Flask.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from audiocraft_api import __version__
from audiocraft_api.config.telemetry import TelemetrySettings
from audiocraft_api.core.request import EngineRequest

CLOSE_SECONDS = 2.0  # to send the remaining spans when the process ends

logger = logging.getLogger(__name__)


class RequestSpan:
    """The span of an HTTP request. It is the current span of its thread until `detach`, and ends with `end`."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = contexts.attach(set_span_in_context(span))

    def set_response(self, status: int, error_code: str | None) -> None:
        """Record the status and the error code of the response."""
        self._span.set_attribute("http.response.status_code", status)
        if error_code is not None:
            self._span.set_attribute("error.type", error_code)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)

    def detach(self) -> None:
        contexts.detach(self._token)

    def end(self) -> None:
        self._span.end()


class Tracing:
    """Creates spans and sends them from a background thread. Thread-safe."""

    def __init__(self, config: TelemetrySettings) -> None:
        endpoint = config.otlp_endpoint.rstrip("/") + "/v1/traces"
        resource = Resource.create({"service.name": "audiocraft-api", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # OpenTelemetry's own environment variables set the queue size, the interval and the timeout of exports.
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter(OTLPSpanExporter(endpoint), endpoint)))
        self._tracer = self._provider.get_tracer("audiocraft_api", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start_request(self, method: str, route: str, request_id: str, traceparent: str | None) -> RequestSpan:
        """Start the span of an HTTP request, as a child of the client's `traceparent` if there is one."""
        attributes = {"http.request.method": method, "http.route": route, "audiocraft.request_id": request_id}
        parent = self._context_of(traceparent)
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, attributes)
        return RequestSpan(span)

    def generation(self) -> Callable[[EngineRequest], None]:
        """Return a callback for the end of a generation. Its spans are children of the span that is current now."""
        parent = contexts.get_current()
        return lambda request: self._record_generation(request, parent)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Trace a step in this thread."""
        with self._tracer.start_as_current_span(name):
            yield

    @contextmanager
    def task(self, task_id: str, attempt: int, traceparent: str | None) -> Iterator[None]:
        """Trace a task in a trace of its own, linked to the request that submitted it."""
        submitted = get_current_span(self._context_of(traceparent)).get_span_context()
        links = [Link(submitted)] if submitted.is_valid else []
        attributes: dict[str, str | int] = {"audiocraft.task_id": task_id, "audiocraft.attempt": attempt}
        with self._tracer.start_as_current_span("task", Context(), SpanKind.CONSUMER, attributes, links):
            yield

    def traceparent(self) -> str | None:
        """Return the current span as a W3C `traceparent`, for other processes."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def close(self) -> None:
        """Send the remaining spans, within a bounded time."""
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)

    def _context_of(self, traceparent: str | None) -> Context:
        carrier: Mapping[str, str] = {"traceparent": traceparent} if traceparent else {}
        return self._propagator.extract(carrier, Context())

    def _record_generation(self, request: EngineRequest, parent: Context) -> None:
        times = request.times
        assert times.ended is not None
        offset = time.time() - time.monotonic()
        begun = times.begun or times.ended
        attributes: dict[str, str | int] = {"audiocraft.model": request.params.model}
        wait = self._tracer.start_span(
            "queue wait", parent, attributes=attributes, start_time=_ns(times.submitted, offset)
        )
        wait.end(_ns(begun, offset))
        if times.begun is None:
            return
        attributes["audiocraft.num_frames"] = request.progress[0]
        decode = self._tracer.start_span("decode", parent, attributes=attributes, start_time=_ns(begun, offset))
        if times.first_audio is not None:
            decode.add_event("first audio", timestamp=_ns(times.first_audio, offset))
        if request.error is not None:
            decode.set_attribute("error.type", request.error.code)
            decode.set_status(StatusCode.ERROR)
        decode.end(_ns(times.ended, offset))


class _Exporter(SpanExporter):
    """Logs once when the collector stops accepting spans, and once when it accepts them again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._is_accepting = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_accepting = result is SpanExportResult.SUCCESS
        if is_accepting != self._is_accepting:
            logger.warning(
                "The collector at %s %s.",
                self._endpoint,
                "accepts spans again" if is_accepting else "does not accept spans; they are dropped",
            )
        self._is_accepting = is_accepting
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _ns(seconds: float, offset: float) -> int:
    return int((seconds + offset) * 1e9)
