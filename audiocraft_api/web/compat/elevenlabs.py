"""ElevenLabs' routes for music and sound, with LocalAI's fields of the latter."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.core.constants import MAX_LONG_DURATION_SECONDS
from audiocraft_api.web.compat.audio import Audio, audio_headers, audio_response, make_audio
from audiocraft_api.web.compat.composition_plan import fields_of_plan, plan_of
from audiocraft_api.web.compat.translation import CompatRequest, Translation, refusal, renamed, request_of
from audiocraft_api.web.operations import Access, Dialect, access
from audiocraft_api.web.parsing import read_json_object
from audiocraft_api.web.services import services

MUSIC = Translation(
    fields={"prompt": "prompt", "music_length_ms": "duration", "model_id": "model_size", "seed": "seed"},
    accepted={"finetune_id": (), "sign_with_c2pa": (False,), "with_timestamps": (False,)},
    conversions={"music_length_ms": lambda milliseconds: milliseconds / 1000},
)
SOUND = Translation(
    fields={
        "text": "prompt",
        "caption": "prompt",
        "duration_seconds": "duration",
        "model_id": "model_size",
        "model": "model_size",
        "prompt_influence": "cfg_coef",
    },
    accepted={"loop": (False,), "do_sample": (True,)},
    conversions={"prompt_influence": lambda influence: influence * 10},  # its default, 0.3, is then the default
)
HINTS = {"bpm": "{} bpm", "keyscale": "{}", "timesignature": "{} time"}  # LocalAI's, as words of the prompt
MUSIC_SECONDS = 30.0
MILLISECONDS = 3_000, int(MAX_LONG_DURATION_SECONDS * 1000)
THEIR_MODELS = ("music_v", "eleven_")
CODES = {"unauthorized": "invalid_api_key", "prompt_refused": "bad_prompt"}

blueprint = Blueprint("compat_elevenlabs", __name__)


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


@blueprint.post("/v1/music")
@access(Access.GENERATE, DIALECT)
def music() -> Response:
    body = read_json_object()
    with renamed(_names(body)):
        return audio_response(_music_request(body), store=body.get("store_for_inpainting") is True)


@blueprint.post("/v1/music/stream")
@access(Access.GENERATE, DIALECT)
def music_stream() -> Response:
    body = read_json_object()
    with renamed(_names(body)):
        return audio_response(_music_request(body), stream=True)


@blueprint.post("/v1/music/detailed")
@access(Access.GENERATE, DIALECT)
def music_detailed() -> Response:
    body = read_json_object()
    with renamed(_names(body)):
        fields = _music_request(body)
        audio = make_audio(fields, store=body.get("store_for_inpainting") is True)
    return _multipart(audio, fields, body.get("composition_plan"))


@blueprint.post("/v1/music/plan")
@access(Access.GENERATE, DIALECT)
def music_plan() -> dict[str, Any]:
    body = read_json_object()
    with renamed(_names(body)):
        if body.get("source_composition_plan") is not None:
            raise refusal("source_composition_plan", "is not supported by this server. Leave it out.")
        length = body.get("music_length_ms") or int(MUSIC_SECONDS * 1000)
        if not isinstance(length, int) or not MILLISECONDS[0] <= length <= MILLISECONDS[1]:
            raise refusal("music_length_ms", "must be an integer from {:,} to {:,}.".format(*MILLISECONDS))
        prompt = _request(MUSIC, body).prompt or ""
    services().policy.require_allowed(prompt)
    return plan_of(prompt, length, has_chunks=_is_v2(body))


@blueprint.post("/v1/sound-generation")
@access(Access.GENERATE, DIALECT)
def sound_generation() -> Response:
    body = read_json_object()
    with renamed({**SOUND.names_of(body), "output_format": "output_format"}):
        fields = _request(SOUND, body)
        hints = [text.format(body[name]) for name, text in HINTS.items() if body.get(name)]
        prompt = ", ".join([fields.prompt or "", *hints])
        return audio_response(request_of(fields.model_dump(exclude_unset=True) | {"prompt": prompt}))


def _names(body: Mapping[str, Any]) -> dict[str, str]:
    return {**MUSIC.names_of(body), "segments": "composition_plan", "duration": "music_length_ms / 1000"}


def _music_request(body: dict[str, Any]) -> CompatRequest:
    if body.get("composition_plan") is None:
        return _request(MUSIC, body, duration=MUSIC_SECONDS)
    for name in ("prompt", "music_length_ms"):
        if body.get(name) is not None:
            raise refusal(name, "cannot be combined with composition_plan.")
    return _request(MUSIC, body, **fields_of_plan(body["composition_plan"]))


def _request(translation: Translation, body: Mapping[str, Any], **defaults: Any) -> CompatRequest:
    fields = translation.fields_of(body)
    if str(fields.get("model_size", "")).startswith(THEIR_MODELS):
        del fields["model_size"]
    output_format = request.args.get("output_format", "auto")
    if output_format == "auto":
        output_format = "mp3_48000_192" if _is_v2(body) else "mp3_44100_128"
    return request_of({**defaults, **fields, "output_format": output_format})


def _is_v2(body: Mapping[str, Any]) -> bool:
    return str(body.get("model_id")).startswith("music_v2")


def _multipart(audio: Audio, fields: CompatRequest, plan: dict[str, Any] | None) -> Response:
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
