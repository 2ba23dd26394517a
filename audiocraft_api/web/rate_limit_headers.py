"""Adds the caller's limits to responses of routes that generate audio, and to the list of models. Counts nothing."""

from __future__ import annotations

from flask import Flask, Response, current_app, g, request

from audiocraft_api.access.caller import UNAUTHENTICATED
from audiocraft_api.access.rate_limiter import RateLimitState
from audiocraft_api.web.admission import charged_windows
from audiocraft_api.web.auth import access_of, client_address
from audiocraft_api.web.errors import whole_seconds
from audiocraft_api.web.operations import Access
from audiocraft_api.web.services import services

# https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ and the older headers that many clients read.
HEADERS = {
    "RateLimit-Policy": "The limits that apply to the caller: quota `q` per window of `w` seconds.",
    "RateLimit": "What remains of each limit (`r`), and the seconds until it resets (`t`).",
    "X-RateLimit-Limit": "Quota of the limit that is closest to exhaustion.",
    "X-RateLimit-Remaining": "What remains of that limit.",
    "X-RateLimit-Reset": "Seconds until that limit resets.",
}


def init_app(app: Flask) -> None:
    """Add the headers to every response that needs them."""
    app.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    for name, value in _headers(_windows()).items():
        response.headers[name] = value
    return response


def _windows() -> list[RateLimitState]:
    rule = request.url_rule
    if rule is None or request.method not in ("GET", "POST"):
        return []
    if access_of(current_app, rule.endpoint) is not Access.GENERATE and rule.endpoint != "models.models":
        return []
    if windows := charged_windows():
        return windows
    caller = g.get("caller", UNAUTHENTICATED)
    return services().limits.peek(None if caller is UNAUTHENTICATED else caller, client_address())


def _headers(windows: list[RateLimitState]) -> dict[str, str]:
    if not windows:
        return {}
    nearest = min(windows, key=lambda window: (window.remaining / window.limit, -window.reset_seconds))
    policies = (f'"{window.name}";q={window.limit};w={window.window_seconds}' for window in windows)
    states = (f'"{window.name}";r={window.remaining};t={_seconds(window)}' for window in windows)
    values = (", ".join(policies), ", ".join(states), nearest.limit, nearest.remaining, _seconds(nearest))
    return {name: str(value) for name, value in zip(HEADERS, values, strict=True)}


def _seconds(window: RateLimitState) -> int:
    return whole_seconds(window.reset_seconds) if window.reset_seconds else 0
