"""Live sessions: the WebSocket that plays them, and the performances that they leave."""

from __future__ import annotations

import logging
from typing import Any

from flask import Blueprint, request
from flask_sock import Sock
from simple_websocket import Server

from audiocraft_api.core.errors import AudioCraftError, ClientDisconnected, ShuttingDown
from audiocraft_api.web.admission import reserve_stream_slot
from audiocraft_api.web.auth import caller
from audiocraft_api.web.live_connection import LiveConnection
from audiocraft_api.web.live_schemas import PerformanceResponse
from audiocraft_api.web.observing import count_error
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.services import services
from audiocraft_api.web.websocket import check_handshake, close_websocket, prepare_socket
from audiocraft_api.web.websocket_messages import INTERNAL_ERROR, close_code, error_message, send

BYTES_PER_SECOND = 32_768  # that a client may send in the long run; the bounds of messages are tighter

blueprint = Blueprint("live", __name__)
sock = Sock()
logger = logging.getLogger(__name__)


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
    code = INTERNAL_ERROR
    try:
        code = LiveConnection(ws).serve()
    except ClientDisconnected:
        logger.info("The client of a live session disconnected.")
    except AudioCraftError as error:
        count_error(error.code, error)
        code = close_code(error)
        _send_error(ws, error)
    finally:
        close_websocket(ws, code)


@blueprint.before_request
def accept_handshake() -> None:
    """Refuse with an HTTP status whatever need not become a WebSocket."""
    if request.path != "/ws/live":
        return
    config = services().config
    check_handshake(request, config.server.cors_origins)
    if services().draining.is_set():
        raise ShuttingDown
    reserve_stream_slot()
    prepare_socket(request.environ, config.audio.max_json_bytes, BYTES_PER_SECOND)


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


def _send_error(ws: Server, error: AudioCraftError) -> None:
    try:
        send(ws, error_message(error))
    except ClientDisconnected:
        logger.info("The client of a live session disconnected before an error.")
