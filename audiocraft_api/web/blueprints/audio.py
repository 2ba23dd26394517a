"""Hands out finished audio files, whole or in ranges. They never change, so caches may keep them."""

from __future__ import annotations

import re
from typing import cast

from flask import Blueprint, Response, redirect, request, send_file
from werkzeug.wsgi import FileWrapper

from audiocraft_api.audio.convert import MEDIA_TYPES
from audiocraft_api.storage.base import CACHE_CONTROL, OpenAudio, link_of, name_of
from audiocraft_api.web.auth import caller
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.services import services

# What is asked for otherwise, several ranges or other units, is answered with the whole file (RFC 9110, 14.2).
ONE_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]+-[0-9]*|-[0-9]+)\s*", re.IGNORECASE)

blueprint = Blueprint("audio", __name__)


@blueprint.get("/audio/<filename>")
@operation(
    Operation(
        "Fetch an audio file",
        "audio",
        Access.LINK,
        dict.fromkeys((200, 206), tuple(sorted(set(MEDIA_TYPES.values())))) | {302: (), 304: ()},
        description="Where the settings say so, 302 leads to the object store that has the file, for a short while.",
        parameters={"filename": "Name of the file, from `audio_url`."},
        errors=(404, 416, 503),
    )
)
def audio(filename: str) -> Response:
    owner = caller().owner if services().config.access.audio_requires_key else None
    name, is_head = name_of(filename, owner), request.method == "HEAD"
    if (elsewhere := services().store.redirect_for(name, is_head=is_head)) is not None:
        return _redirect(elsewhere)
    opened = services().store.open(name)
    try:
        response = _respond(opened)
        if opened.is_remote and not is_head and response.status_code != 304:
            _read_ahead(opened, response)
    except BaseException:
        opened.file.close()
        raise
    if is_head or response.status_code == 304:
        opened.file.close()  # no body is sent, so no server closes it
    return response


def _redirect(address: str) -> Response:
    """Lead to an address that is good for a while; caches keep this for half of that, and so never lead to a dead end."""
    response = cast(Response, redirect(address))
    response.headers["Cache-Control"] = f"private, max-age={services().config.storage.s3_link_seconds // 2}"
    return response


def _read_ahead(opened: OpenAudio, response: Response) -> None:
    """Fetch the beginning of what will be sent, so that a store that fails is an error's answer and no broken file."""
    start = response.content_range.start if response.status_code == 206 else 0
    opened.file.seek(start or 0)
    opened.file.read(1)
    opened.file.seek(start or 0)


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
    if ONE_RANGE.fullmatch(environ.get("HTTP_RANGE", "")):
        # In place of gunicorn's wrapper, which cannot seek: all that lies before the range would be read for nothing.
        response.response = FileWrapper(opened.file)
    else:
        environ.pop("HTTP_RANGE", None)
    # Not by send_file: it does not learn the length of a file object, and ranges need it. Raises 416.
    response.make_conditional(environ, accept_ranges=True, complete_length=stored.size_bytes)
    return response
