"""Releases what a request acquired when its response ends: at its last byte, or when its client disconnects.

The body of a streamed response is sent after Flask's request context is gone, so that a view cannot release anything
with `finally` or `with`, and Flask's teardown comes too early.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

from flask import Flask, Response, g


def init_app(app: Flask) -> None:
    """Run the callbacks of `at_response_end`."""
    app.after_request(_leave_to_stream)
    app.teardown_request(_end)


def at_response_end(callback: Callable[[], object]) -> None:
    """Call `callback` once, when the response of the current request has ended; the last one registered comes first."""
    if "lifetime" not in g:
        g.lifetime = ExitStack()
    cast(ExitStack, g.lifetime).callback(callback)


def _leave_to_stream(response: Response) -> Response:
    if "lifetime" in g and response.is_streamed:
        # The server calls `close` in any case; a generator that was never started would not run its `finally`.
        response.call_on_close(g.pop("lifetime").close)
    return response


def _end(_error: BaseException | None) -> None:
    if "lifetime" in g:
        g.pop("lifetime").close()
