"""Tells clients of their limits on every answer of a route that makes audio, and ends what those requests held."""

from __future__ import annotations

from flask import Flask, Response, current_app, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from audiocraft_api.access.caller import UNAUTHENTICATED
from audiocraft_api.access.limits import Window, network_of
from audiocraft_api.web.auth import access_of
from audiocraft_api.web.errors import whole_seconds
from audiocraft_api.web.operations import Access
from audiocraft_api.web.services import services, services_of

# https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ and what clients knew before it.
HEADERS = {
    "RateLimit-Policy": "The limits that hold for the caller: `q` in `w` seconds.",
    "RateLimit": "What is left of them: `r`, and the seconds `t` until there is more.",
    "X-RateLimit-Limit": "The limit that is nearest.",
    "X-RateLimit-Remaining": "What is left of it.",
    "X-RateLimit-Reset": "Seconds until there is more.",
}


def init_app(app: Flask) -> None:
    """Believe the configured proxies, and add the headers of limits."""
    if num_proxies := services_of(app).config.limits.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=num_proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    app.after_request(_finish)
    app.teardown_request(_release)


def address() -> str:
    """Return the address that the current request counts for."""
    return network_of(request.remote_addr or "")


def _finish(response: Response) -> Response:
    if "admission" in g and response.is_streamed:
        response.call_on_close(g.pop("admission_release"))  # a stream holds its place until its end
    for name, value in _headers(_windows()).items():
        response.headers[name] = value
    return response


def _release(_error: BaseException | None) -> None:
    if "admission_release" in g:
        g.admission_release()


def _windows() -> list[Window]:
    rule = request.url_rule
    if rule is None or request.method not in ("GET", "POST"):
        return []
    if access_of(current_app, rule.endpoint) is not Access.GENERATE:
        return []
    if "admission" in g and g.admission.windows:
        windows: list[Window] = g.admission.windows
        return windows
    caller = g.get("caller", UNAUTHENTICATED)
    return services().limits.peek(None if caller is UNAUTHENTICATED else caller, address())


def _headers(windows: list[Window]) -> dict[str, str]:
    if not windows:
        return {}
    nearest = min(windows, key=lambda window: (window.remaining / window.quota, -window.reset_seconds))
    policies = (f'"{window.name}";q={window.quota};w={window.window_seconds}' for window in windows)
    states = (f'"{window.name}";r={window.remaining};t={_seconds(window)}' for window in windows)
    values = (", ".join(policies), ", ".join(states), nearest.quota, nearest.remaining, _seconds(nearest))
    return {name: str(value) for name, value in zip(HEADERS, values, strict=True)}


def _seconds(window: Window) -> int:
    return whole_seconds(window.reset_seconds) if window.reset_seconds else 0
