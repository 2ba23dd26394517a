"""Text and a melody to music; the response is sent when the audio is ready."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from audiocraft_api.web.admission import admitted
from audiocraft_api.web.melody_upload import with_melody
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.request_headers import PREFER, parse_idempotency_key, parse_preference
from audiocraft_api.web.responses import AUDIO_DESCRIPTION, AUDIO_RESPONSES, generate_audio_json
from audiocraft_api.web.schemas.forms import MelodyRequest
from audiocraft_api.web.services import services
from audiocraft_api.web.task_submission import respond_by_task

blueprint = Blueprint("melody", __name__)


@blueprint.post("/generate-with-melody")
@Operation(
    summary="Generate music from text and a melody",
    tag="generation",
    access=Access.GENERATE,
    responses=AUDIO_RESPONSES,
    description=AUDIO_DESCRIPTION,
    form=MelodyRequest,
    request_headers=PREFER,
    errors=(410, 422, 504),
)
def generate_with_melody(fields: MelodyRequest) -> dict[str, Any] | Response:
    preference = parse_preference(services().config.engine.request_deadline_seconds)
    key = parse_idempotency_key() if preference else None
    with admitted(fields, services().catalog.melody_checkpoint(fields.model_size), key) as command:
        with services().request_slots.acquire():  # also while the upload waits for a decoder
            command = with_melody(command, fields)
            if not preference:
                return generate_audio_json(command, fields.return_type)
        return respond_by_task(command, fields.return_type, preference)
