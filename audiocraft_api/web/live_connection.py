"""Serves a WebSocket of a live session in any contract: the handshake, the sessions one after the other, the end."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing

from flask import request
from simple_websocket import Server

from audiocraft_api.core.errors import (
    AudioCraftError,
    ClientDisconnected,
    InvalidRequest,
    PromptRefused,
    ShuttingDown,
)
from audiocraft_api.web.admission import reserve_stream_slot
from audiocraft_api.web.auth import caller, client_address
from audiocraft_api.web.live_contract import LiveContract
from audiocraft_api.web.live_play import LivePlay
from audiocraft_api.web.live_socket import LiveSocket
from audiocraft_api.web.live_steering import rejected
from audiocraft_api.web.observing import count_error
from audiocraft_api.web.schemas.live import StartMessage
from audiocraft_api.web.services import services
from audiocraft_api.web.websocket import check_handshake, close_websocket, prepare_socket
from audiocraft_api.web.websocket_messages import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL_CLOSURE,
    close_code,
    error_message,
)

BYTES_PER_SECOND = 32_768  # that a client may send in the long run; the bounds of messages are tighter
WAIT_SECONDS = 0.05

logger = logging.getLogger(__name__)


def accept_live_handshake() -> None:
    """Refuse with an HTTP status whatever need not become a WebSocket."""
    config = services().config
    check_handshake(request, config.server.cors_origins)
    if services().draining.is_set():
        raise ShuttingDown
    reserve_stream_slot()
    prepare_socket(request.environ, config.audio.max_json_bytes, BYTES_PER_SECOND)


def serve_live(ws: Server, contract: LiveContract) -> None:
    """Serve a client from its first message until the connection is closed."""
    code, text = INTERNAL_ERROR, ""
    try:
        with ExitStack() as stack:
            sessions = services().live_sessions
            client = LiveSocket(
                ws,
                contract,
                services().config.live.live_messages_per_second,
                lambda: stack.enter_context(sessions.admit(caller().owner or client_address())),
            )
            try:
                end = _serve_sessions(client, contract)
                code = GOING_AWAY if end == "draining" else NORMAL_CLOSURE
                text = contract.closing_text({"type": "ended", "reason": end})
            except ClientDisconnected:
                raise
            except AudioCraftError as error:
                count_error(error.code, error)
                message = error_message(error)
                code, text = close_code(error), contract.closing_text(message)
                client.send(message)
    except ClientDisconnected:
        logger.info("The client of a live session disconnected.")
    finally:
        close_websocket(ws, code, text)


def _serve_sessions(client: LiveSocket, contract: LiveContract) -> str:
    """Return why the last session ended. Raises ClientDisconnected, or the error to send as the last."""
    while True:
        with closing(LivePlay(client, start := _receive_start(client, contract), contract.output_format)) as play:
            try:
                play.prepare()
            except (InvalidRequest, PromptRefused) as error:
                if not contract.restarts:
                    raise
                client.send(rejected(start, error))
                continue
            end = play.serve()
            if not contract.restarts or end != "stopped":
                return end


def _receive_start(client: LiveSocket, contract: LiveContract) -> StartMessage:
    """Wait for the beginning of a session. Raises InvalidRequest, ShuttingDown, ClientDisconnected."""
    opened, settings = time.monotonic(), services().config
    while True:
        if (text := client.receive(WAIT_SECONDS)) is not None:
            client.read(text)
        if (start := contract.next_start()) is not None:
            return start
        if services().draining.is_set():
            raise ShuttingDown
        if not client.has_received and time.monotonic() - opened >= settings.server.socket_timeout_seconds:
            raise InvalidRequest("No message was received. Send a message of the type start first.")
        if client.has_received and time.monotonic() - client.last_message >= settings.live.live_idle_seconds:
            raise InvalidRequest("No session was begun for a long time. Open another connection when you begin one.")
