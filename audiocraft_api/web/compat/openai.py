"""Routes in OpenAI's style: text to music under the three paths that servers use, and the list of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response

from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.compat.audio import audio_response
from audiocraft_api.web.compat.translation import Translation, model_named, renamed, request_of
from audiocraft_api.web.operations import Access, Dialect, access
from audiocraft_api.web.parsing import read_json_object
from audiocraft_api.web.services import services

DEFAULT_FORMATS = {"speech": "mp3"}  # of OpenAI's own route; the others have `wav`
MUSIC = Translation(
    fields={
        "input": "prompt",
        "prompt": "prompt",
        "model": "model_size",
        "seconds": "duration",
        "duration": "duration",
        "audio_length": "duration",
        "response_format": "output_format",
        "guidance_scale": "cfg_coef",
        "guidance": "cfg_coef",
        "negative_prompt": "negative_prompt",
        "seed": "seed",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
    },
    accepted={"speed": (1,), "n": (1,), "audio_start": (0,), "stream_format": ("audio",)},
)
# There, `input` is what a voice says or sings, and `instructions` is how it sounds.
SPEECH = replace(MUSIC, fields={"instructions": "prompt", **MUSIC.fields})
CODES = {"unauthorized": "invalid_api_key", "prompt_refused": "content_policy_violation"}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

blueprint = Blueprint("compat_openai", __name__)


def error_body(status: int, code: str, message: str, details: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return an error as OpenAI has it, and its status."""
    param = next(iter(details.get("errors") or ()), None)
    if code == "invalid_request" and param == "model":
        status, code = 404, "model_not_found"
    if code == "prompt_refused":
        status = 400
    kind = TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": CODES.get(code, code)}
    error |= {name: details[name] for name in ("category", "suggestion") if details.get(name)}
    return {"error": error}, status


DIALECT = Dialect(error_body)


@blueprint.post("/v1/audio/<any(music, generate, speech):route>")
@access(Access.GENERATE, DIALECT)
def music(route: str) -> Response:
    body = read_json_object()
    translation = SPEECH if route == "speech" else MUSIC
    if route == "speech" and body.get("instructions") is not None:
        body.pop("input", None)
    with renamed(translation.names_of(body)):
        fields = translation.fields_of(body)
        fields.setdefault("output_format", DEFAULT_FORMATS.get(route, "wav"))
        stream = body.get("stream") is True or body.get("stream_format") is not None
        return audio_response(request_of(fields), stream=stream)


@blueprint.get("/v1/models")
@access(Access.READ, DIALECT)
def models() -> dict[str, Any]:
    catalog = services().catalog
    return {"object": "list", "data": [_model(spec) for spec in catalog if catalog.is_allowed(spec)]}


@blueprint.get("/v1/models/<name>")
@access(Access.READ, DIALECT)
def model(name: str) -> dict[str, Any]:
    with renamed({"model_size": "model"}):
        return _model(services().catalog.get(model_named(name)))


def _model(spec: ModelSpec) -> dict[str, Any]:
    """Describe a model. The time it was made is unknown."""
    return {"id": spec.name, "object": "model", "created": 0, "owned_by": spec.checkpoint.rpartition("/")[0] or "local"}
