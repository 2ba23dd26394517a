"""Replicate's routes for files, which predictions name by their URLs."""

from __future__ import annotations

import json
import re
from typing import Any, BinaryIO

from flask import Blueprint, Response, request
from werkzeug.datastructures import FileStorage
from werkzeug.wsgi import FileWrapper

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.storage.client_files import ClientFile
from audiocraft_api.tasks.prediction import timestamp
from audiocraft_api.web.admission import counted
from audiocraft_api.web.auth import caller
from audiocraft_api.web.compat.replicate_errors import DIALECT
from audiocraft_api.web.compat.translation import refusal
from audiocraft_api.web.operations import Access, access
from audiocraft_api.web.parsing import read_form
from audiocraft_api.web.services import services

URL = re.compile(r"https?://[^/?#\s]{1,255}/v1/files/([0-9a-f-]{1,64})")
MAX_METADATA_BYTES = 8 * 2**10
MAX_NAME_CHARACTERS = 255
NO_FILE = "content is required: send the file in a multipart form."

blueprint = Blueprint("compat_files", __name__)


@blueprint.post("/v1/files")
@access(Access.GENERATE, DIALECT)
def create() -> tuple[dict[str, Any], int]:
    """Keep a file. As with other uploads, a large form is on disk until the request is admitted."""
    files, texts = read_form()
    content = files.get("content")
    if content is None or not content.filename:
        raise InvalidRequest(NO_FILE, {"content": [NO_FILE]})
    metadata = _metadata(files.get("metadata") or texts.get("metadata"))
    name = content.filename[:MAX_NAME_CHARACTERS]
    media_type = content.mimetype[:MAX_NAME_CHARACTERS] or "application/octet-stream"
    with counted(), services().request_slots.acquire():  # which bounds the memory for files
        kept = services().client_files.save(content.stream.read(), name, media_type, metadata, caller().owner)
    return _shown(kept), 201


@blueprint.get("/v1/files")
@access(Access.READ, DIALECT)
def index() -> dict[str, Any]:
    found = services().client_files.list(caller().owner)
    return {"previous": None, "next": None, "results": [_shown(file) for file in found]}


@blueprint.get("/v1/files/<file_id>")
@access(Access.READ, DIALECT)
def get(file_id: str) -> dict[str, Any]:
    return _shown(services().client_files.get(file_id, caller().owner))


@blueprint.get("/v1/files/<file_id>/download")
@access(Access.READ, DIALECT)
def download(file_id: str) -> Response:
    about, file = services().client_files.open(file_id, caller().owner)
    # Not the media type of the client: a browser must not run what was uploaded. Not `send_file`: gunicorn would begin
    # at the position of the descriptor, which is behind what the buffer has read ahead.
    response = Response(FileWrapper(file), mimetype="application/octet-stream", direct_passthrough=True)
    response.content_length = about.size_bytes
    response.headers.set("Content-Disposition", "attachment", filename=about.name)
    return response


@blueprint.delete("/v1/files/<file_id>")
@access(Access.GENERATE, DIALECT)
def delete(file_id: str) -> tuple[str, int]:
    services().client_files.delete(file_id, caller().owner)
    return "", 204


def open_file(url: str) -> BinaryIO | None:
    """Open the file of the current caller that a URL of this server names; None for any other URL.

    Raises NotFound, StorageUnavailable.
    """
    found = URL.fullmatch(url)
    return services().client_files.open(found[1], caller().owner)[1] if found else None


def _metadata(given: FileStorage | str | None) -> dict[str, Any]:
    """Return the metadata, which some clients send as a file."""
    if given is None or given == "":
        return {}
    text = given if isinstance(given, str) else given.stream.read(MAX_METADATA_BYTES + 1)
    metadata, num_bytes = None, 0
    try:
        metadata = json.loads(text) if len(text) <= MAX_METADATA_BYTES else None
        num_bytes = len(json.dumps(metadata, allow_nan=False))  # which may be longer
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or num_bytes > MAX_METADATA_BYTES:
        raise refusal("metadata", f"must be a JSON object of at most {MAX_METADATA_BYTES:,} bytes.")
    return metadata


def _shown(file: ClientFile) -> dict[str, Any]:
    url = f"{request.host_url}v1/files/{file.id}"
    return {
        "id": file.id,
        "name": file.name,
        "content_type": file.media_type,
        "size": file.size_bytes,
        "etag": file.sha256,
        "checksums": {"sha256": file.sha256},
        "metadata": file.metadata,
        "created_at": timestamp(file.created),
        "expires_at": timestamp(file.expires),
        "urls": {"get": url, "download": f"{url}/download"},
    }
