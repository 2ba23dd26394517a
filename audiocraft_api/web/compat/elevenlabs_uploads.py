"""ElevenLabs' upload of songs, and the routes for music that this server refuses."""

from __future__ import annotations

from typing import Any, cast

from flask import Blueprint, request

from audiocraft_api.audio.convert import encode
from audiocraft_api.core.errors import InvalidAudio, InvalidRequest, NotFound
from audiocraft_api.storage.base import link_of
from audiocraft_api.web.admission import counted
from audiocraft_api.web.auth import caller
from audiocraft_api.web.compat.elevenlabs_responses import DIALECT
from audiocraft_api.web.compat.translation import refusal
from audiocraft_api.web.operations import Access, access
from audiocraft_api.web.parsing import read_form
from audiocraft_api.web.services import services

NO_FILE = "file is required: send the song in a multipart form."
NOT_SUPPORTED = ("extract_composition_plan", "with_timestamps", "with_waveform_visual")
REFUSED = {
    "/v1/music/detailed/stream": "This server does not stream details. Use /v1/music/stream or /v1/music/detailed.",
    "/v1/music/stem-separation": "This server does not separate stems of recordings. Send `stems` to /generate.",
    "/v1/music/video-to-music": "This server does not make music for videos. Use /v1/music with a prompt.",
}

blueprint = Blueprint("compat_elevenlabs_uploads", __name__)


@blueprint.post("/v1/music/upload")
@access(Access.GENERATE, DIALECT)
def upload() -> dict[str, Any]:
    """Keep a song, of which a composition plan may continue a range. It is stored as FLAC."""
    files, texts = read_form()
    file = files.get("file")
    if file is None or not file.filename:
        raise InvalidRequest(NO_FILE, {"file": [NO_FILE]})
    for name in NOT_SUPPORTED:
        if texts.get(name, "false").lower() != "false":
            raise refusal(name, "is not supported by this server. Leave it out or send false.")
    with counted(), services().request_slots.acquire():
        try:
            song = services().uploads.decode(cast("Any", file.stream), "audio")
        except InvalidAudio as error:
            raise InvalidRequest(error.message, {"file": [error.message]}) from error
        timeout_seconds = services().config.audio.convert_timeout_seconds
        audio = encode(song.waveform, song.sample_rate, "flac", timeout_seconds=timeout_seconds)
        owner = caller().owner if services().config.access.audio_requires_key else None
        stored = services().store.save(audio, "flac", owner)
    return {"song_id": link_of(stored.filename)}


@access(Access.GENERATE, DIALECT)
def refuse() -> dict[str, Any]:
    raise NotFound(REFUSED[request.path])


for path in REFUSED:
    blueprint.add_url_rule(path, view_func=refuse, methods=["POST"])
