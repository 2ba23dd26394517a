"""Text to music as a stream: the response starts with the first audio and continues as more is generated."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator

from flask import Blueprint, Response, request

from audiocraft_api.audio.convert import MEDIA_TYPES
from audiocraft_api.core.errors import AudioCraftError, Canceled
from audiocraft_api.core.log_context import request_id_var
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.streaming import AudioStream
from audiocraft_api.web.admission import admitted_text, reserve_stream_slot
from audiocraft_api.web.context import request_id
from audiocraft_api.web.continuing import continued_from
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.lifetime import at_response_end
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.schemas.generation import StreamRequest
from audiocraft_api.web.services import services

HEADERS = {
    "X-Audio-Seed": "Send this seed to generate the same audio again.",
    "X-Audio-Model": "Name of the model, as in `GET /models`.",
    "X-Audio-Revision": "Revision of the checkpoint.",
    "X-Audio-Sample-Rate": "Sample rate in Hz.",
    "X-Audio-Duration": "Duration of the whole stream in seconds.",
}

blueprint = Blueprint("streams", __name__)
logger = logging.getLogger(__name__)


@blueprint.post("/generate-stream")
@Operation(
    summary="Generate music from text and stream it",
    tag="generation",
    access=Access.GENERATE,
    responses={200: tuple(sorted(set(MEDIA_TYPES.values())))},
    description="The response starts with the first audio. If the generation fails later, the server closes the "
    "connection before the last chunk of the body. Closing the connection stops the generation. WAV headers state "
    "the length of the whole stream.",
    json=StreamRequest,
    headers=HEADERS,
    errors=(404, 410, 422, 501, 504),
)
def generate_stream(fields: StreamRequest) -> Response:
    with admitted_text(fields) as command:
        return stream_audio(continued_from(command, fields))


def stream_audio(command: GenerateCommand) -> Response:
    """Run an admitted command and respond with its audio as it is generated."""
    waiter = Waiter(client_gone(request.environ))
    at_response_end(lambda: request_id_var.set("-"))  # the body is sent outside of Flask's context
    reserve_stream_slot()
    stream = services().generation.stream(command)
    at_response_end(stream.close)
    pieces = stream.pieces()
    first = _first_audio(pieces, waiter)  # before the status line, so that a failure is an error response
    response = Response(_body(first, pieces, waiter, request_id()), mimetype=stream.format.media_type)
    response.headers.update(_headers(stream))
    return response


def _first_audio(pieces: Iterator[bytes], waiter: Waiter) -> bytes:
    for piece in pieces:
        if piece:
            return piece
        waiter.raise_if_stopped()
    return b""


def _headers(stream: AudioStream) -> dict[str, str]:
    outline = stream.outline
    assert outline is not None
    return {
        "X-Audio-Seed": str(stream.submission.params.seed),
        "X-Audio-Model": stream.submission.params.model,
        "X-Audio-Revision": outline.revision,
        "X-Audio-Sample-Rate": str(stream.sample_rate),
        "X-Audio-Duration": f"{stream.num_samples / outline.sample_rate:g}",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # otherwise nginx buffers the whole stream
    }


def _body(first: bytes, pieces: Iterator[bytes], waiter: Waiter, request_id: str) -> Iterator[bytes]:
    """Yield the audio. Raises ConnectionResetError to end the body without its last chunk."""
    request_id_var.set(request_id)
    num_bytes = len(first)
    yield first
    try:
        for piece in pieces:
            waiter.raise_if_stopped()
            num_bytes += len(piece)
            if piece:
                yield piece
    except AudioCraftError as error:
        logger.log(
            logging.INFO if isinstance(error, Canceled) else logging.WARNING,
            "Aborted a stream after %d bytes: %s",
            num_bytes,
            error.message,
        )
        # Servers treat this as a connection that the client closed: they close it and log no traceback.
        raise ConnectionResetError(errno.ECONNRESET, error.message) from error
    logger.info("Streamed %d bytes.", num_bytes)
