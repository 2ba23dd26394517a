"""Serves finished audio files, whole or in ranges. A file never changes, so that caches may keep it."""

from __future__ import annotations

import re
from typing import BinaryIO, cast

from flask import Blueprint, Response, redirect, request, send_file
from werkzeug.wsgi import FileWrapper

from audiocraft_api.audio.convert import MEDIA_TYPES
from audiocraft_api.storage.base import CACHE_CONTROL, OpenAudio, link_of, name_of
from audiocraft_api.web.auth import caller
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.services import services

# Other requests, with several ranges or other units, get the whole file (RFC 9110, 14.2).
ONE_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]+-[0-9]*|-[0-9]+)\s*", re.IGNORECASE)

blueprint = Blueprint("audio", __name__)


@blueprint.get("/audio/<filename>")
@Operation(
    summary="Download an audio file",
    tag="audio",
    access=Access.LINK,
    responses=dict.fromkeys((200, 206), tuple(sorted(set(MEDIA_TYPES.values())))) | {302: (), 304: ()},
    description="Supports range requests. If the server is configured to do so, it redirects (302) to a short-lived "
    "URL of the object store.",
    parameters={"filename": "Name of the file: the last part of `audio_url`."},
    errors=(416,),
)
def audio(filename: str) -> Response:
    owner = caller().owner if services().config.access.audio_requires_key else None
    name, is_head = name_of(filename, owner), request.method == "HEAD"
    if (url := services().store.redirect_for(name, is_head=is_head)) is not None:
        return _redirect(url)
    opened = services().store.open(name)
    try:
        response = _respond(opened)
        if opened.is_remote and not is_head and response.status_code != 304:
            _read_ahead(opened, response)
    except BaseException:
        opened.file.close()
        raise
    if is_head or response.status_code == 304:
        opened.file.close()  # no body is sent, so the server does not close it
    return response


def _redirect(url: str) -> Response:
    """Redirect to a URL that expires; caches keep the redirect for half that time and so never serve an expired one."""
    response = cast(Response, redirect(url))
    response.headers["Cache-Control"] = f"private, max-age={services().config.storage.s3_link_seconds // 2}"
    return response


def _read_ahead(opened: OpenAudio, response: Response) -> None:
    """Read the first byte before responding, so that a failing store causes an error response, not a truncated file."""
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
    conditional(response, opened.file, stored.size_bytes)
    return response


def conditional(response: Response, file: BinaryIO, num_bytes: int) -> None:
    """Make a response with a whole file the one to the current request's range and conditions. Raises 416."""
    environ = dict(request.environ)
    if ONE_RANGE.fullmatch(environ.get("HTTP_RANGE", "")):
        # gunicorn's own wrapper cannot seek and would read everything before the range.
        response.response = FileWrapper(file)
    else:
        environ.pop("HTTP_RANGE", None)
    # send_file does not know the length of a file object, which ranges need.
    response.make_conditional(environ, accept_ranges=True, complete_length=num_bytes)
