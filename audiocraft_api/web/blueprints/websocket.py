"""Text to music over a WebSocket: the client sends a request and receives progress and audio until it is done."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Blueprint, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server

from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    ClientDisconnected,
    InvalidRequest,
    LimitExceeded,
    ShuttingDown,
    Unavailable,
)
from audiocraft_api.generation.streaming import POLL_SECONDS, AudioStream
from audiocraft_api.web.admission import admitted, reserve_stream_slot, settle_charge
from audiocraft_api.web.context import request_id
from audiocraft_api.web.continuing import continued_from
from audiocraft_api.web.errors import details_of, whole_seconds
from audiocraft_api.web.observing import count_error
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.parsing import parse_json_text
from audiocraft_api.web.schemas import SocketRequest
from audiocraft_api.web.services import services
from audiocraft_api.web.websocket import check_handshake, close_websocket, prepare_socket

# Close codes of RFC 6455 and of the IANA registry.
NORMAL_CLOSURE, GOING_AWAY, POLICY_VIOLATION, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1001, 1008, 1011, 1013
PROTOCOL = """The client's first message is the request, with the same JSON as `POST /generate-stream`. The server then
sends JSON text messages and, between them, the audio as binary messages:

* `{"type": "accepted", "seed", "model", "format", "media_type", "request_id"}`, once;
* `{"type": "progress", "current", "total"}`, repeatedly, in frames;
* `{"type": "done", "duration", "generation_time", "sample_rate", "format", "seed", "model", "revision", "request_id"}`
  at the end, with `"audio_url"` and `"file_format"` if the request has a `file_format`, the format of a file to store
  as well; or `{"type": "error", "error", "code", "request_id", "errors"?, "category"?, "suggestion"?,
  "retry_after"?}`.

To stop the generation, send `{"type": "cancel"}` or close the connection. A connection carries one request.
A web page cannot set headers on a WebSocket. To send an API key, it offers two subprotocols, `audiocraft-api` and
`audiocraft-api-key.<key>`; the server selects the first."""

blueprint = Blueprint("websocket", __name__)
sock = Sock()
logger = logging.getLogger(__name__)


@blueprint.before_request
def accept_handshake() -> None:
    """Refuse with an HTTP status whatever need not become a WebSocket."""
    config = services().config
    check_handshake(request, config.server.cors_origins)
    if services().draining.is_set():
        raise ShuttingDown
    reserve_stream_slot()
    prepare_socket(request.environ, config.audio.max_json_bytes)


@sock.route("/ws/generate", bp=blueprint)  # type: ignore[untyped-decorator]
@Operation(
    summary="Generate music from text over a WebSocket",
    tag="generation",
    access=Access.GENERATE,
    responses={101: ()},
    description=PROTOCOL,
    errors=(400,),
)
def generate_live(ws: Server) -> None:
    code = INTERNAL_ERROR
    try:
        code = _serve(ws)
    except ClientDisconnected:
        logger.info("The client of a WebSocket disconnected.")
    finally:
        close_websocket(ws, code)


def _serve(ws: Server) -> int:
    """Serve the connection's request and return the close code. Raises ClientDisconnected."""
    try:
        fields = parse_json_text(SocketRequest, _receive_request(ws))
        spec = services().catalog.get(fields.model_size)
        with admitted(fields, spec) as command:
            stream = services().generation.stream(continued_from(command, fields, spec))
            try:
                _send_stream(ws, stream, fields.file_format)
            finally:
                stream.close()
    except ClientDisconnected:
        raise
    except AudioCraftError as error:
        count_error(error.code, error)
        _send(ws, _error_message(error))
        return _close_code(error)
    return NORMAL_CLOSURE


def _send_stream(ws: Server, stream: AudioStream, file_format: str | None) -> None:
    params, audio_format = stream.submission.params, stream.format
    common = {"seed": params.seed, "model": params.model, "format": audio_format.name, "request_id": request_id()}
    _send(ws, {"type": "accepted", "media_type": audio_format.media_type} | common)
    sent_progress = (0, 0)
    for piece in stream.pieces():
        _poll_client(ws)
        if stream.progress != sent_progress:
            sent_progress = stream.progress
            _send(ws, {"type": "progress", "current": sent_progress[0], "total": sent_progress[1]})
        if piece:
            settle_charge(charged=True)
            _send_audio(ws, piece)
    recipe = stream.recipe()
    result = {
        "duration": recipe.duration_seconds,
        "generation_time": round(recipe.generation_seconds, 3),
        "sample_rate": recipe.sample_rate,
        "revision": recipe.revision,
    }
    if file_format is not None:
        stored = services().generation.store_stream(stream, file_format)
        result |= {"audio_url": stored.url, "file_format": stored.recipe.format}
    _send(ws, {"type": "done"} | result | common)


def _receive_request(ws: Server) -> str:
    """Wait for the first message. Raises InvalidRequest, ShuttingDown, ClientDisconnected."""
    deadline = time.monotonic() + services().config.server.socket_timeout_seconds
    while (message := _receive(ws, POLL_SECONDS)) is None:
        if services().draining.is_set():
            raise ShuttingDown
        if time.monotonic() >= deadline:
            raise InvalidRequest("No request was received. Send the request as the first message.")
    if not isinstance(message, str):
        raise InvalidRequest("Send the request as a text message that contains JSON.")
    return message


def _poll_client(ws: Server) -> None:
    """Handle a message that the client sent during the generation. Raises Canceled, InvalidRequest."""
    message = _receive(ws, 0)
    if message is None:
        return
    try:
        is_cancel = json.loads(message) == {"type": "cancel"}
    except (ValueError, RecursionError):
        is_cancel = False
    if not is_cancel:
        raise InvalidRequest('During a generation the only message accepted is {"type": "cancel"}.')
    raise Canceled


def _receive(ws: Server, timeout_seconds: float) -> str | bytes | None:
    with _client_errors():
        message: str | bytes | None = ws.receive(timeout=timeout_seconds)
    return message


def _send(ws: Server, message: dict[str, Any]) -> None:
    with _client_errors():
        ws.send(json.dumps(message))


def _send_audio(ws: Server, piece: bytes) -> None:
    with _client_errors():
        ws.send(piece)


@contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except (ConnectionClosed, OSError) as error:
        raise ClientDisconnected from error


def _error_message(error: AudioCraftError) -> dict[str, Any]:
    message: dict[str, Any] = {
        "type": "error",
        "error": error.message,
        "code": error.code,
        "request_id": request_id(),
    }
    message |= {name: value for name, value in details_of(error).items() if value is not None}
    if isinstance(error, (Unavailable, LimitExceeded)):
        message["retry_after"] = whole_seconds(error.retry_after_seconds)
    return message


def _close_code(error: AudioCraftError) -> int:
    if isinstance(error, Canceled):
        return NORMAL_CLOSURE
    if isinstance(error, ShuttingDown):
        return GOING_AWAY
    if isinstance(error, (Unavailable, LimitExceeded)):
        return TRY_AGAIN_LATER
    return POLICY_VIOLATION if error.status < 500 else INTERNAL_ERROR
