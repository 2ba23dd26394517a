"""Text to music, heard while it is made: the answer begins with the first audio and goes on as more is there."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator

from flask import Blueprint, Response, request

from audiocraft_api.audio.convert import MEDIA_TYPES
from audiocraft_api.core.errors import AudioCraftError, Canceled, ClientDisconnected
from audiocraft_api.core.log_context import request_id_var
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.streaming import AudioStream
from audiocraft_api.web.admission import admitted
from audiocraft_api.web.blueprints.generate import GENERATION_ERRORS
from audiocraft_api.web.context import request_id
from audiocraft_api.web.disconnect import client_gone, connection_of
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.parsing import parse_json
from audiocraft_api.web.schemas import StreamRequest
from audiocraft_api.web.services import services

HEADERS = {
    "X-Audio-Seed": "Send it again for the same audio.",
    "X-Audio-Model": "Public name of the checkpoint.",
    "X-Audio-Revision": "Revision of the checkpoint.",
    "X-Audio-Sample-Rate": "Hz.",
    "X-Audio-Duration": "Seconds of audio in the whole stream.",
}

blueprint = Blueprint("stream", __name__)
logger = logging.getLogger(__name__)


@blueprint.post("/generate-stream")
@operation(
    Operation(
        "Make music from text and hear it while it is made",
        "generation",
        Access.GENERATE,
        {200: tuple(sorted(set(MEDIA_TYPES.values())))},
        description="The answer begins with the first audio. When the generation fails later, the connection is "
        "closed before the last chunk of the body. A client that closes its connection stops the generation. "
        "WAV headers say that the length is unknown (0xFFFFFFFF).",
        json=StreamRequest,
        errors=(*GENERATION_ERRORS, 501),
        headers=HEADERS,
        examples={
            "demo": {"prompt": "warm analog synth arpeggio, 100 bpm", "model_size": "demo", "duration": 2, "seed": 7},
            "MP3": {"prompt": "solo cello", "model_size": "demo", "duration": 1, "output_format": "mp3"},
        },
    )
)
def generate_stream() -> Response:
    fields = parse_json(StreamRequest, services().config.audio.max_json_bytes)
    with admitted(fields, services().catalog.get(fields.model_size)) as command:
        return _answer(command)


def _answer(command: GenerateCommand) -> Response:
    gone = client_gone(request.environ)
    place = services().stream_slots.acquire(connection_of(request.environ))
    try:
        stream = services().generation.stream(command)
    except BaseException:
        place.release()
        raise

    def end() -> None:
        stream.close()
        place.release()
        request_id_var.set("-")

    try:
        pieces = stream.pieces()
        # Whatever can be refused is refused before the status line.
        first = _wait_for_audio(pieces, gone)
        response = Response(_body(first, pieces, gone, request_id()), mimetype=stream.format.media_type)
        response.headers.update(_headers(stream))
    except BaseException:
        end()
        raise
    response.call_on_close(end)  # the server calls it in any case; a generator that was not begun has no `finally`
    return response


def _wait_for_audio(pieces: Iterator[bytes], gone: Callable[[], bool]) -> bytes:
    for piece in pieces:
        if piece:
            return piece
        if gone():
            raise ClientDisconnected
    return b""


def _headers(stream: AudioStream) -> dict[str, str]:
    outline = stream.outline
    assert outline is not None
    return {
        "X-Audio-Seed": str(stream.submission.params.seed),
        "X-Audio-Model": stream.submission.params.model,
        "X-Audio-Revision": outline.revision,
        "X-Audio-Sample-Rate": str(stream.sample_rate),
        "X-Audio-Duration": f"{outline.num_samples / outline.sample_rate:g}",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # nginx would keep it all until the end
    }


def _body(first: bytes, pieces: Iterator[bytes], gone: Callable[[], bool], request_id: str) -> Iterator[bytes]:
    """Yield the audio. Raises ConnectionResetError to end the body without its last chunk."""
    request_id_var.set(request_id)  # Flask's context is over by now
    num_bytes = len(first)
    yield first
    try:
        for piece in pieces:
            if gone():
                raise ClientDisconnected
            num_bytes += len(piece)
            if piece:
                yield piece
    except AudioCraftError as error:
        logger.log(
            logging.INFO if isinstance(error, Canceled) else logging.WARNING,
            "Broke off a stream after %d bytes: %s",
            num_bytes,
            error.message,
        )
        # Servers take it for a connection that the client has closed: they close it, and write no traceback.
        raise ConnectionResetError(errno.ECONNRESET, error.message) from error
    logger.info("Streamed %d bytes.", num_bytes)
