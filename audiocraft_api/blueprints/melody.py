"""Text and an uploaded tune to music, answered when the audio is ready."""

from __future__ import annotations

from typing import Any, BinaryIO, cast

from flask import Blueprint

from audiocraft_api.blueprints.generate import (
    GENERATION_ANSWERS,
    GENERATION_ERRORS,
    answer_generation,
    check_duration,
    command_of,
)
from audiocraft_api.http.operations import Operation, operation
from audiocraft_api.http.parsing import parse_form
from audiocraft_api.http.schemas import MelodyRequest
from audiocraft_api.http.services import services

NO_FILE = "No melody file provided"

blueprint = Blueprint("melody", __name__)


@blueprint.post("/generate-with-melody")
@operation(
    Operation(
        "Make music from text and a tune",
        "generation",
        GENERATION_ANSWERS,
        description="Waits until the audio is ready. A client that closes its connection stops the generation.",
        form=MelodyRequest,
        errors=GENERATION_ERRORS,
    )
)
def generate_with_melody() -> dict[str, Any]:
    fields = parse_form(MelodyRequest, "melody", NO_FILE)
    spec = services().catalog.melody_checkpoint(fields.model_size)
    check_duration(fields, spec)
    with services().waiters.place():
        melody = services().melodies.decode(cast(BinaryIO, fields.melody.stream))
        return answer_generation(command_of(fields, spec, melody), fields.return_type)
