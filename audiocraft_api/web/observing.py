"""Counts and traces every request. Metrics name routes by their URL rule, so that clients cannot create labels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from flask import Flask, Response, g, request

from audiocraft_api.core.errors import AudioCraftError
from audiocraft_api.telemetry.metrics import REFUSALS
from audiocraft_api.web.context import request_id
from audiocraft_api.web.services import services

if TYPE_CHECKING:
    from audiocraft_api.telemetry.tracing import RequestSpan

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNTRACED = frozenset({"/health", "/ready", "/metrics"})


def init_app(app: Flask) -> None:
    """Count and trace every request."""
    app.before_request(_start_span)
    app.after_request(_record_response)
    app.teardown_request(_detach_span)


def count_error(code: str, error: AudioCraftError | None = None) -> None:
    """Record the error that the current request ends with."""
    g.error_code = code
    services().telemetry.metrics.count_error(code, is_refusal=isinstance(error, REFUSALS))


def _route() -> str:
    return request.url_rule.rule if request.url_rule else "unknown"


def _method() -> str:
    return request.method if request.method in METHODS else "other"


def _start_span() -> None:
    tracing, route = services().telemetry.tracing, _route()
    if tracing is not None and route not in UNTRACED:
        g.span = tracing.start_request(_method(), route, request_id(), request.headers.get("traceparent"))


def _record_response(response: Response) -> Response:
    metrics, route, status = services().telemetry.metrics, _route(), response.status_code
    metrics.http_requests.labels(_method(), route, status).inc()
    metrics.http_seconds.labels(route).observe(time.perf_counter() - g.started)
    if (span := _span()) is not None:
        span.set_response(status, g.get("error_code"))
        if response.is_streamed:
            response.call_on_close(span.end)  # at the last byte, or when the client disconnects
        else:
            span.end()
    return response


def _detach_span(_error: BaseException | None) -> None:
    if (span := _span()) is not None:
        span.detach()


def _span() -> RequestSpan | None:
    return cast("RequestSpan | None", g.get("span"))
