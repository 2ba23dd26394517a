"""Text to music; the response is sent when the audio is ready."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from audiocraft_api.web.admission import admitted_text
from audiocraft_api.web.continuing import continued_from
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.request_headers import PREFER, parse_idempotency_key, parse_preference
from audiocraft_api.web.responses import AUDIO_DESCRIPTION, AUDIO_RESPONSES, generate_audio_json
from audiocraft_api.web.schemas.generation import GenerateRequest
from audiocraft_api.web.services import services
from audiocraft_api.web.task_submission import respond_by_task

blueprint = Blueprint("generate", __name__)


@blueprint.post("/generate")
@Operation(
    summary="Generate music from text",
    tag="generation",
    access=Access.GENERATE,
    responses=AUDIO_RESPONSES,
    description=AUDIO_DESCRIPTION,
    json=GenerateRequest,
    request_headers=PREFER,
    errors=(404, 410, 422, 504),
)
def generate(fields: GenerateRequest) -> dict[str, Any] | Response:
    preference = parse_preference(services().config.engine.request_deadline_seconds)
    key = parse_idempotency_key() if preference else None
    with admitted_text(fields, key) as command:
        if preference:
            return respond_by_task(continued_from(command, fields), fields.return_type, preference)
        with services().request_slots.acquire():
            return generate_audio_json(continued_from(command, fields), fields.return_type)
