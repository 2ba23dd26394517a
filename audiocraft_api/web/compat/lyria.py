"""The WebSocket of Lyria RealTime, as Google's clients speak it. It plays live sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint
from flask_sock import Sock
from simple_websocket import Server

from audiocraft_api.web.compat.lyria_contract import LyriaContract
from audiocraft_api.web.live_connection import accept_live_handshake, serve_live
from audiocraft_api.web.operations import Access, Dialect, access

STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}

blueprint = Blueprint("compat_lyria", __name__)
sock = Sock()


def error_body(status: int, _code: str, message: str, _details: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return an error as Google's API has it, and its status."""
    return {"error": {"code": status, "message": message, "status": STATUSES.get(status, "INTERNAL")}}, status


DIALECT = Dialect(error_body, key_header="x-goog-api-key", key_query="key")


@sock.route(  # type: ignore[untyped-decorator]
    "/ws/google.ai.generativelanguage.<any(v1alpha, v1beta):version>.GenerativeService.BidiGenerateMusic",
    bp=blueprint,
)
@access(Access.GENERATE, DIALECT)
def generate_music(ws: Server, version: str) -> None:  # noqa: ARG001 - both versions are the same
    serve_live(ws, LyriaContract())


blueprint.before_request(accept_live_handshake)
