"""Who calls: looks at each request's key before anything else, and holds each route to its own decision."""

from __future__ import annotations

from typing import cast

from flask import Flask, current_app, g, request

from audiocraft_api.errors import Forbidden
from audiocraft_api.http.operations import Access
from audiocraft_api.service.access.caller import EVERYBODY, Caller


def init_app(app: Flask) -> None:
    """Authenticate every request."""
    app.before_request(_authenticate)


def caller() -> Caller:
    """Return who calls, in the current request."""
    return cast(Caller, g.caller)


def access_of(app: Flask, endpoint: str) -> Access | None:
    """Return what a route has decided; None when it forgot to."""
    return getattr(app.view_functions[endpoint], "access", None)


def _authenticate() -> None:
    g.caller = EVERYBODY
    if request.endpoint is not None and access_of(current_app, request.endpoint) is None:
        raise Forbidden("This route has not decided who may call it.")
