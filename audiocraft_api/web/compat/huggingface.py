"""The route of Hugging Face's inference clients, which post to the URL of a model. Errors are those of this API."""

from __future__ import annotations

import base64
from typing import Any

from flask import Blueprint, Response, jsonify, request

from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.web.compat.audio import audio_response, make_audio
from audiocraft_api.web.compat.translation import Translation, renamed, request_of
from audiocraft_api.web.operations import Access, access
from audiocraft_api.web.parsing import read_json_object

TEXT_TO_AUDIO = Translation(
    fields={
        "inputs": "prompt",
        "duration": "duration",
        "max_new_tokens": "duration",
        "guidance_scale": "cfg_coef",
        "negative_prompt": "negative_prompt",
        "seed": "seed",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "output_format": "output_format",
    },
    accepted={"do_sample": (True,), "num_beams": (1,), "num_return_sequences": (1,)},
    conversions={"max_new_tokens": lambda tokens: tokens / FRAME_RATE},
)
PARTS = ("parameters", "generation_parameters", "generate_kwargs")  # objects whose fields count as the request's
FORMATS = {"audio/flac": "flac", "audio/wav": "wav", "audio/mpeg": "mp3", "audio/ogg": "ogg", "application/json": "wav"}

blueprint = Blueprint("compat_huggingface", __name__)


@blueprint.post("/hf/<path:model>")
@blueprint.post("/models/<path:model>")
@access(Access.GENERATE)
def text_to_audio(model: str) -> Response:
    body = _flat(read_json_object())
    media_type = request.accept_mimetypes.best_match(list(FORMATS), "audio/flac")
    with renamed({"model_size": "model", **TEXT_TO_AUDIO.names_of(body)}):
        fields = {"output_format": FORMATS[media_type], **TEXT_TO_AUDIO.fields_of(body), "model_size": model}
        if media_type != "application/json":
            return audio_response(request_of(fields))
        audio = make_audio(request_of(fields))
    return jsonify(audio=base64.b64encode(audio.content).decode(), sampling_rate=audio.about["sample_rate"])


def _flat(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request and of its parts; those of the inner parts count."""
    found = dict(body)
    for name in PARTS:
        if isinstance(part := found.get(name), dict):
            found |= part
    return found
