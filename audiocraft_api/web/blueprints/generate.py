"""Text to music, answered when the audio is ready."""

from __future__ import annotations

import base64
from typing import Any

from flask import Blueprint, Response, request

from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.web.admission import admitted
from audiocraft_api.web.context import request_id
from audiocraft_api.web.disconnect import client_gone
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.parsing import parse_json
from audiocraft_api.web.prefer import preference
from audiocraft_api.web.schemas import GenerateBase64Response, GenerateRequest, GenerateUrlResponse
from audiocraft_api.web.services import services
from audiocraft_api.web.task_responses import IDEMPOTENCY_HEADER, answer_by_task, idempotency_key
from audiocraft_api.web.task_schemas import AcceptedResponse

GENERATION_ANSWERS = {200: (GenerateUrlResponse, GenerateBase64Response), 202: (AcceptedResponse,)}
GENERATION_ERRORS = (400, 411, 413, 415, 422, 503, 504)
GENERATION_DESCRIPTION = (
    "Waits until the audio is ready. A client that closes its connection stops the generation. "
    "With the header `Prefer: respond-async` the answer is a task, at once; with `Prefer: wait=N` it is one when "
    "the audio is not ready within N seconds. `Idempotency-Key` works with `Prefer`."
)
PREFER: dict[str, dict[str, Any]] = {
    "Prefer": {"type": "string", "description": "`respond-async`, `wait=N` (RFC 7240).", "examples": ["wait=10"]},
    **IDEMPOTENCY_HEADER,
}

blueprint = Blueprint("generate", __name__)


@blueprint.post("/generate")
@operation(
    Operation(
        "Make music from text",
        "generation",
        Access.GENERATE,
        GENERATION_ANSWERS,
        description=GENERATION_DESCRIPTION,
        json=GenerateRequest,
        errors=(*GENERATION_ERRORS, 410),
        request_headers=PREFER,
        examples={
            "demo": {"prompt": "warm analog synth arpeggio, 100 bpm", "model_size": "demo", "duration": 2, "seed": 7},
            "in the answer": {
                "prompt": "solo cello, slow",
                "model_size": "demo",
                "duration": 1,
                "output_format": "mp3",
                "return_type": "base64",
            },
            "every field": {
                "prompt": "bossa nova guitar",
                "model_size": "small",
                "duration": 5.0,
                "temperature": 1.0,
                "top_k": 250,
                "top_p": 0.0,
                "cfg_coef": 3.0,
                "seed": 1,
                "output_format": "wav",
                "return_type": "url",
            },
        },
    )
)
def generate() -> dict[str, Any] | Response:
    fields = parse_json(GenerateRequest, services().config.audio.max_json_bytes)
    preferred = preference(services().config.engine.request_deadline_seconds)
    key = idempotency_key() if preferred else None
    with admitted(fields, services().catalog.get(fields.model_size), key) as command:
        if preferred:
            return answer_by_task(command, fields.return_type, preferred)
        with services().request_slots.acquire():
            return answer_generation(command, fields.return_type)


def answer_generation(command: GenerateCommand, return_type: str) -> dict[str, Any]:
    """Run a command while its client waits, and render the result."""
    waiter = Waiter(client_gone(request.environ), services().config.engine.request_deadline_seconds)
    if return_type == "base64":
        made = services().generation.generate_bytes(command, waiter)
        audio = base64.b64encode(made.audio).decode()
        return GenerateBase64Response(audio=audio, request_id=request_id(), **made.recipe.to_dict()).model_dump()
    stored = services().generation.generate_file(command, waiter)
    return GenerateUrlResponse(audio_url=stored.url, request_id=request_id(), **stored.recipe.to_dict()).model_dump()
