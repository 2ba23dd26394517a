"""Text to music over a WebSocket: a request in, then progress and audio out, until it is done or canceled."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from flask import Blueprint, g, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server

from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    InvalidRequest,
    LimitExceeded,
    ShuttingDown,
    Unavailable,
)
from audiocraft_api.generation.streaming import POLL_SECONDS, AudioStream
from audiocraft_api.web.admission import admitted
from audiocraft_api.web.context import request_id
from audiocraft_api.web.disconnect import connection_of
from audiocraft_api.web.errors import details_of, whole_seconds
from audiocraft_api.web.observing import count_error
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.parsing import parse_json_text
from audiocraft_api.web.schemas import StreamRequest
from audiocraft_api.web.services import services
from audiocraft_api.web.websocket import check_handshake, hang_up, prepare_socket

# Close codes of RFC 6455 and its registry.
DONE, GOING_AWAY, REFUSED, BROKEN, TRY_AGAIN_LATER = 1000, 1001, 1008, 1011, 1013
PROTOCOL = """The first message is the request, as the JSON of `POST /generate-stream`. Then come, as JSON texts,
`{"type": "accepted", "seed", "model", "format", "media_type", "request_id"}`, again and again
`{"type": "progress", "current", "total"}` in frames, between them the audio as binary messages, and in the end
`{"type": "done", "duration", "generation_time", "sample_rate", "format", "seed", "model", "revision", "request_id"}` or
`{"type": "error", "error", "code", "request_id", "errors"?, "category"?, "suggestion"?, "retry_after"?}`. `{"type": "cancel"}`, or a close, stops it.
A connection carries one request. A page that may send no headers offers two protocols, `audiocraft-api` and
`audiocraft-api-key.<key>`; the first is chosen."""

blueprint = Blueprint("live", __name__)
sock = Sock()
logger = logging.getLogger(__name__)


@blueprint.before_request
def admit() -> None:
    """Refuse in HTTP what need not become a WebSocket."""
    config = services().config
    check_handshake(request, config.server.cors_origins)
    if services().draining.is_set():
        raise ShuttingDown
    g.place = services().stream_slots.acquire(connection_of(request.environ))
    prepare_socket(request.environ, config.audio.max_json_bytes)


@blueprint.teardown_request
def release(_error: BaseException | None) -> None:
    if "place" in g:
        g.place.release()


@sock.route("/ws/generate", bp=blueprint)  # type: ignore[untyped-decorator]
@operation(
    Operation(
        "Make music from text over a WebSocket",
        "generation",
        Access.GENERATE,
        {101: ()},
        description=PROTOCOL,
        errors=(400, 503),
    )
)
def generate_live(ws: Server) -> None:
    code = BROKEN
    try:
        try:
            _generate(ws)
            code = DONE
        except AudioCraftError as error:
            code = _close_code(error)
            count_error(error.code, error)
            _tell(ws, _error_message(error))
    except (ConnectionClosed, OSError):
        logger.info("The client of a WebSocket left.")
    finally:
        hang_up(ws, code)


def _generate(ws: Server) -> None:
    fields = parse_json_text(StreamRequest, _first_message(ws))
    with admitted(fields, services().catalog.get(fields.model_size)) as command:
        stream = services().generation.stream(command)
    try:
        _play(ws, stream)
    except Canceled:
        raise
    except AudioCraftError:
        g.admission.refund()  # unless audio has been sent
        raise
    finally:
        stream.close()


def _play(ws: Server, stream: AudioStream) -> None:
    params, audio_format = stream.submission.params, stream.format
    common = {"seed": params.seed, "model": params.model, "format": audio_format.name, "request_id": request_id()}
    _tell(ws, {"type": "accepted", "media_type": audio_format.media_type} | common)
    told = (0, 0)
    for piece in stream.pieces():
        _listen(ws)
        if stream.progress != told:
            told = stream.progress
            _tell(ws, {"type": "progress", "current": told[0], "total": told[1]})
        if piece:
            g.admission.commit()
            ws.send(piece)
    recipe = stream.recipe()
    made = {
        "duration": recipe.duration_seconds,
        "generation_time": round(recipe.generation_seconds, 3),
        "sample_rate": recipe.sample_rate,
        "revision": recipe.revision,
    }
    _tell(ws, {"type": "done"} | made | common)


def _first_message(ws: Server) -> str:
    until = time.monotonic() + services().config.server.socket_timeout_seconds
    while (message := ws.receive(timeout=POLL_SECONDS)) is None:
        if services().draining.is_set():
            raise ShuttingDown
        if time.monotonic() >= until:
            raise InvalidRequest("No request came; send it as the first message.")
    if not isinstance(message, str):
        raise InvalidRequest("Send the request as a text message with JSON.")
    return message


def _listen(ws: Server) -> None:
    """Take note of what the client says meanwhile. Raises Canceled, InvalidRequest, ConnectionClosed."""
    message = ws.receive(timeout=0)
    if message is None:
        return
    try:
        is_cancel = json.loads(message) == {"type": "cancel"}
    except (ValueError, RecursionError):
        is_cancel = False
    if not is_cancel:
        raise InvalidRequest('While audio is made, only {"type": "cancel"} is understood.')
    raise Canceled


def _tell(ws: Server, message: dict[str, Any]) -> None:
    ws.send(json.dumps(message))


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
        return DONE
    if isinstance(error, ShuttingDown):
        return GOING_AWAY
    if isinstance(error, (Unavailable, LimitExceeded)):
        return TRY_AGAIN_LATER
    return REFUSED if error.status < 500 else BROKEN
