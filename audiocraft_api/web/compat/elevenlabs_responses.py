"""ElevenLabs' errors, and its response with details."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from flask import Response

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.web.compat.audio import Audio, audio_headers
from audiocraft_api.web.compat.translation import CompatRequest
from audiocraft_api.web.operations import Dialect

CODES = {"unauthorized": "invalid_api_key", "prompt_refused": "bad_prompt"}


def error_body(status: int, code: str, message: str, details: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return an error as ElevenLabs has it, and its status."""
    if errors := details.get("errors"):
        found = [
            {"loc": ["body", name], "msg": sentence, "type": "value_error"}
            for name, sentences in errors.items()
            for sentence in sentences
        ]
        return {"detail": found}, 422
    detail: dict[str, Any] = {"status": CODES.get(code, code), "message": message}
    if code == "prompt_refused":
        data = {"prompt_suggestion": details.get("suggestion"), "category": details.get("category")}
        return {"detail": detail | {"data": data}}, 400
    return {"detail": detail}, status


DIALECT = Dialect(error_body, key_header="xi-api-key")


def detailed_response(audio: Audio, fields: CompatRequest, plan: dict[str, Any] | None) -> Response:
    """Return JSON and audio in the one layout that the parsers of ElevenLabs' clients read.

    They need the boundary at once, one header before the JSON, the JSON on one line, and the audio last.
    """
    prompt = fields.parts[0].description
    seconds = fields.seconds
    section = {"section_name": "Main", "positive_local_styles": [], "negative_local_styles": [], "lines": []}
    made = {"positive_global_styles": [prompt], "negative_global_styles": []}
    about = {
        "composition_plan": plan or made | {"sections": [section | {"duration_ms": round(seconds * 1000)}]},
        "song_metadata": {"title": prompt[:100], "description": prompt, "genres": [], "languages": []}
        | {"is_explicit": False},
        "words_timestamps": None,
    }
    boundary = f"--{secrets.token_hex(16)}"
    audio_format = ALL_FORMATS[fields.output_format]
    head = (
        f"{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(about)}\r\n"
        f"{boundary}\r\nContent-Type: {audio_format.media_type}\r\n"
        f'Content-Disposition: attachment; filename="music.{audio_format.extension}"\r\n\r\n'
    )
    content = head.encode() + audio.content + f"\r\n{boundary}--\r\n".encode()
    response = Response(content, content_type=f"multipart/mixed; boundary={boundary[2:]}")
    response.headers.update(audio_headers(audio))
    return response
