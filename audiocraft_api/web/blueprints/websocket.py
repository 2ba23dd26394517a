"""Text to music over a WebSocket: the client sends a request and receives progress and audio until it is done."""

from __future__ import annotations

import json
import logging
import time

from flask import Blueprint, request
from flask_sock import Sock
from simple_websocket import Server

from audiocraft_api.core.engine import QueuePlace
from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    ClientDisconnected,
    InvalidRequest,
    ShuttingDown,
)
from audiocraft_api.generation.streaming import POLL_SECONDS, AudioStream
from audiocraft_api.web.admission import admitted_text, reserve_stream_slot, settle_charge
from audiocraft_api.web.context import request_id
from audiocraft_api.web.continuing import continued_from
from audiocraft_api.web.observing import count_error
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.parsing import parse_json_text
from audiocraft_api.web.schemas.generation import SocketRequest
from audiocraft_api.web.services import services
from audiocraft_api.web.websocket import check_handshake, close_websocket, prepare_socket
from audiocraft_api.web.websocket_messages import (
    INTERNAL_ERROR,
    NORMAL_CLOSURE,
    close_code,
    error_message,
    receive,
    send,
    send_audio,
)

PROTOCOL = """The client's first message is the request, with the same JSON as `POST /generate-stream`. The server then
sends JSON text messages and, between them, the audio as binary messages:

* `{"type": "accepted", "seed", "model", "format", "media_type", "request_id"}`, once;
* `{"type": "queued", "queue_position", "eta_seconds"}`, at most once per second while the generation waits for others;
  the estimate is the time until it finishes, null if unknown;
* `{"type": "progress", "current", "total"}`, repeatedly, in frames;
* `{"type": "done", "duration", "generation_time", "sample_rate", "format", "seed", "model", "revision", "request_id"}`
  at the end, with `"audio_url"` and `"file_format"` if the request has a `file_format`, the format of a file to store
  as well; or `{"type": "error", "error", "code", "request_id", "errors"?, "category"?, "suggestion"?,
  "retry_after"?}`.

To stop the generation, send `{"type": "cancel"}` or close the connection. A connection carries one request.
A web page cannot set headers on a WebSocket. To send an API key, it offers two subprotocols, `audiocraft-api` and
`audiocraft-api-key.<key>`; the server selects the first."""

PLACE_SECONDS = 1.0  # between two messages about the place in the queue

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
        with admitted_text(fields) as command:
            stream = services().generation.stream(continued_from(command, fields))
            try:
                _send_stream(ws, stream, fields.file_format)
            finally:
                stream.close()
    except ClientDisconnected:
        raise
    except AudioCraftError as error:
        count_error(error.code, error)
        send(ws, error_message(error))
        return close_code(error)
    return NORMAL_CLOSURE


def _send_stream(ws: Server, stream: AudioStream, file_format: str | None) -> None:
    params, audio_format = stream.submission.params, stream.format
    common = {"seed": params.seed, "model": params.model, "format": audio_format.name, "request_id": request_id()}
    send(ws, {"type": "accepted", "media_type": audio_format.media_type} | common)
    reporter = _Reporter(ws, stream)
    for piece in stream.pieces():
        _poll_client(ws)
        reporter.report()
        if piece:
            settle_charge(charged=True)
            send_audio(ws, piece)
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
    send(ws, {"type": "done"} | result | common)


class _Reporter:
    """Tells the client where its request waits, and how far it is, whenever that has changed."""

    def __init__(self, ws: Server, stream: AudioStream) -> None:
        self._ws, self._stream = ws, stream
        self._progress = (0, 0)
        self._place: QueuePlace | None = None
        self._place_due = 0.0  # `time.monotonic()`

    def report(self) -> None:
        if self._stream.progress != self._progress:
            self._progress = self._stream.progress
            send(self._ws, {"type": "progress", "current": self._progress[0], "total": self._progress[1]})
        elif self._progress[1] == 0 and (now := time.monotonic()) >= self._place_due:
            self._place_due = now + PLACE_SECONDS
            self._report_place(self._stream.queue_place)

    def _report_place(self, place: QueuePlace | None) -> None:
        if place is None or place == self._place:
            return
        self._place = place
        eta = None if place.eta_seconds is None else round(place.eta_seconds, 1)
        send(self._ws, {"type": "queued", "queue_position": place.position, "eta_seconds": eta})


def _receive_request(ws: Server) -> str:
    """Wait for the first message. Raises InvalidRequest, ShuttingDown, ClientDisconnected."""
    deadline = time.monotonic() + services().config.server.socket_timeout_seconds
    while (message := receive(ws, POLL_SECONDS)) is None:
        if services().draining.is_set():
            raise ShuttingDown
        if time.monotonic() >= deadline:
            raise InvalidRequest("No request was received. Send the request as the first message.")
    if not isinstance(message, str):
        raise InvalidRequest("Send the request as a text message that contains JSON.")
    return message


def _poll_client(ws: Server) -> None:
    """Handle a message that the client sent during the generation. Raises Canceled, InvalidRequest."""
    message = receive(ws, 0)
    if message is None:
        return
    try:
        is_cancel = json.loads(message) == {"type": "cancel"}
    except (ValueError, RecursionError):
        is_cancel = False
    if not is_cancel:
        raise InvalidRequest('During a generation the only message accepted is {"type": "cancel"}.')
    raise Canceled
