"""Hands out finished audio files, whole or in ranges. They never change, so caches may keep them."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request, send_file

from audiocraft_api.http.auth import caller
from audiocraft_api.http.operations import Access, Operation, operation
from audiocraft_api.http.services import services
from audiocraft_api.service.convert import MEDIA_TYPES
from audiocraft_api.service.storage.base import OpenAudio, link_of, name_of

CACHE_CONTROL = "private, max-age=31536000, immutable"
# What is asked for otherwise, several ranges or other units, is answered with the whole file (RFC 9110, 14.2).
ONE_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]+-[0-9]*|-[0-9]+)\s*", re.IGNORECASE)

blueprint = Blueprint("audio", __name__)


@blueprint.get("/audio/<filename>")
@operation(
    Operation(
        "Fetch an audio file",
        "audio",
        Access.LINK,
        dict.fromkeys((200, 206), tuple(sorted(set(MEDIA_TYPES.values())))) | {304: ()},
        parameters={"filename": "Name of the file, from `audio_url`."},
        errors=(404, 416),
    )
)
def audio(filename: str) -> Response:
    owner = caller().owner if services().config.audio_requires_key else None
    opened = services().store.open(name_of(filename, owner))
    try:
        response = _respond(opened)
    except BaseException:
        opened.file.close()
        raise
    if request.method == "HEAD" or response.status_code == 304:
        opened.file.close()  # no body is sent, so no server closes it
    return response


def _respond(opened: OpenAudio) -> Response:
    stored = opened.audio
    filename = link_of(stored.filename)
    response = send_file(
        opened.file,
        mimetype=MEDIA_TYPES.get(filename.rpartition(".")[2], "application/octet-stream"),
        as_attachment=True,
        download_name=filename,
        last_modified=stored.modified_at,
        etag=stored.etag,
        conditional=False,
    )
    response.content_length = stored.size_bytes
    response.headers["Cache-Control"] = CACHE_CONTROL
    environ = dict(request.environ)
    if not ONE_RANGE.fullmatch(environ.get("HTTP_RANGE", "")):
        environ.pop("HTTP_RANGE", None)
    # Not by send_file: it does not learn the length of a file object, and ranges need it. Raises 416.
    response.make_conditional(environ, accept_ranges=True, complete_length=stored.size_bytes)
    return response
