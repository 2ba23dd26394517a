"""Gives every request an ID and a log line, and every response its common headers."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import cast
from urllib.parse import quote

from flask import Flask, Response, g, request
from werkzeug.http import parse_date

from audiocraft_api.core.log_context import request_id_var

# Headers that hold a date, by their WSGI names. An invalid date must be ignored (RFC 9110, 13.1).
DATES = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

logger = logging.getLogger("audiocraft_api.access")


def request_id() -> str:
    """Return the ID of the current request."""
    return cast(str, g.request_id)


def init_app(app: Flask) -> None:
    """Register the hooks."""
    app.before_request(_start_request)
    app.after_request(_log_response)
    app.teardown_request(_clear_log_context)


def _start_request() -> None:
    for name in DATES:
        if not _is_parsable(request.environ.get(name, "")):
            del request.environ[name]
    incoming = request.headers.get("X-Request-ID", "")
    g.request_id = incoming if _SANE_ID.fullmatch(incoming) else secrets.token_hex(8)
    g.started = time.perf_counter()
    request_id_var.set(g.request_id)


def _is_parsable(date: str) -> bool:
    """Return whether Werkzeug can parse a date or recognize it as invalid; it raises OverflowError for some."""
    try:
        parse_date(date)
    except OverflowError:
        return False
    return True


def _log_response(response: Response) -> Response:
    response.headers["X-Request-ID"] = request_id()
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    fields = {
        "method": request.method,
        "path": quote(request.path),
        "status": response.status_code,
        "milliseconds": round((time.perf_counter() - g.started) * 1000, 1),
    }
    line = "%(method)s %(path)s %(status)d in %(milliseconds).1f ms"
    if "caller" in g and g.caller.owner is not None:
        fields["key_id"] = g.caller.owner
        line += " by %(key_id)s"
    logger.info(line, fields, extra=fields)
    return response


def _clear_log_context(_error: BaseException | None) -> None:
    request_id_var.set("-")  # the thread is reused: later log lines must not carry this ID
