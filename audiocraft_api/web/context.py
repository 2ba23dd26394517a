"""What surrounds every request: its id, its log line, the headers of every answer."""

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

# Headers with a date, as WSGI names them. One that is none is to be ignored (RFC 9110, 13.1).
DATES = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

logger = logging.getLogger("audiocraft_api.access")


def request_id() -> str:
    """Return the id of the current request."""
    return cast(str, g.request_id)


def init_app(app: Flask) -> None:
    """Give every request an id and a log line, and every answer its common headers."""
    app.before_request(_begin)
    app.after_request(_finish)
    app.teardown_request(_forget)


def _begin() -> None:
    for name in DATES:
        if not _can_be_read(request.environ.get(name, "")):
            del request.environ[name]
    incoming = request.headers.get("X-Request-ID", "")
    g.request_id = incoming if _SANE_ID.fullmatch(incoming) else secrets.token_hex(8)
    g.started = time.perf_counter()
    request_id_var.set(g.request_id)


def _can_be_read(date: str) -> bool:
    """Say whether Werkzeug can read a date, or know that it is none; what it takes for one may be out of range."""
    try:
        parse_date(date)
    except OverflowError:
        return False
    return True


def _finish(response: Response) -> Response:
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


def _forget(_error: BaseException | None) -> None:
    request_id_var.set("-")  # threads are used again: nothing is logged under a request that is over
