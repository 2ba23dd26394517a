"""Text and an uploaded tune to music, answered when the audio is ready."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, BinaryIO, cast

from flask import Blueprint, Response

from audiocraft_api.web.admission import admitted
from audiocraft_api.web.blueprints.generate import (
    GENERATION_ANSWERS,
    GENERATION_DESCRIPTION,
    GENERATION_ERRORS,
    PREFER,
    answer_generation,
)
from audiocraft_api.web.operations import Access, Operation, operation
from audiocraft_api.web.parsing import parse_form
from audiocraft_api.web.prefer import preference
from audiocraft_api.web.schemas import MelodyRequest
from audiocraft_api.web.services import services
from audiocraft_api.web.task_responses import answer_by_task, idempotency_key

NO_FILE = "No melody file provided"

blueprint = Blueprint("melody", __name__)


@blueprint.post("/generate-with-melody")
@operation(
    Operation(
        "Make music from text and a tune",
        "generation",
        Access.GENERATE,
        GENERATION_ANSWERS,
        description=GENERATION_DESCRIPTION,
        form=MelodyRequest,
        errors=(*GENERATION_ERRORS, 410),
        request_headers=PREFER,
    )
)
def generate_with_melody() -> dict[str, Any] | Response:
    fields = parse_form(MelodyRequest, "melody", NO_FILE)
    preferred = preference(services().config.engine.request_deadline_seconds)
    key = idempotency_key() if preferred else None
    with admitted(fields, services().catalog.melody_checkpoint(fields.model_size), key) as command:
        with services().request_slots.acquire():
            melody = services().melodies.decode(cast(BinaryIO, fields.melody.stream))
            command = replace(command, melody=melody)
            if not preferred:
                return answer_generation(command, fields.return_type)
        return answer_by_task(command, fields.return_type, preferred)
