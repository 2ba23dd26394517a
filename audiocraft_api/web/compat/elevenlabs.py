"""ElevenLabs' routes for music and sound, with LocalAI's fields of the latter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from audiocraft_api.core.constants import MAX_LONG_DURATION_SECONDS
from audiocraft_api.web.admission import counted
from audiocraft_api.web.compat.audio import audio_response, make_audio
from audiocraft_api.web.compat.composition_plan import fields_of_plan, plan_of
from audiocraft_api.web.compat.elevenlabs_responses import DIALECT, detailed_response
from audiocraft_api.web.compat.translation import CompatRequest, Translation, refusal, renamed, request_of
from audiocraft_api.web.operations import Access, access
from audiocraft_api.web.parsing import read_json_object

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

blueprint = Blueprint("compat_elevenlabs", __name__)


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
    return detailed_response(audio, fields, body.get("composition_plan"))


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
    with counted([prompt]):
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
