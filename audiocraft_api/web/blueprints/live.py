"""Live sessions: the WebSocket that plays them, and the performances that they leave."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from flask_sock import Sock
from simple_websocket import Server

from audiocraft_api.web.auth import caller
from audiocraft_api.web.live_connection import accept_live_handshake, serve_live
from audiocraft_api.web.live_contract import PlainContract
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.schemas.live import PerformanceResponse
from audiocraft_api.web.services import services

blueprint = Blueprint("live", __name__)
sock = Sock()


@sock.route("/ws/live", bp=blueprint)  # type: ignore[untyped-decorator]
@Operation(
    summary="Play live over a WebSocket",
    tag="live",
    access=Access.GENERATE,
    responses={101: ()},
    description="Generates music without end, and lets the client change prompts and controls while it plays. "
    "`GET /asyncapi.json` describes the messages.",
    errors=(400,),
)
def live(ws: Server) -> None:
    serve_live(ws, PlainContract())


@blueprint.before_request
def accept_handshake() -> None:
    if request.path == "/ws/live":
        accept_live_handshake()


@blueprint.get("/performances/<performance_id>")
@Operation(
    summary="Get a performance",
    tag="live",
    access=Access.READ,
    responses={200: (PerformanceResponse,)},
    description="The changes of a live session, with the frames from which they hold. Kept as long as audio files.",
    parameters={"performance_id": "`performance` of the session's `ended` message."},
)
def performance(performance_id: str) -> dict[str, Any]:
    return services().performances.load(performance_id, caller().owner)
