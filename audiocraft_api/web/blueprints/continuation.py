"""A recording to more music: the audio and a text are continued, at once or in a task."""

from __future__ import annotations

from typing import Any, BinaryIO, cast

from flask import Blueprint, Response

from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.continuation import continued
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.admission import admitted
from audiocraft_api.web.blueprints.tasks import LOCATION
from audiocraft_api.web.melody_upload import with_melody
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.request_headers import IDEMPOTENCY_KEY, PREFER, parse_idempotency_key, parse_preference
from audiocraft_api.web.responses import (
    AUDIO_DESCRIPTION,
    AUDIO_RESPONSES,
    generate_audio_json,
    task_accepted_response,
)
from audiocraft_api.web.schemas.forms import ContinuationFields, ContinuationRequest
from audiocraft_api.web.schemas.tasks import ContinuationTaskRequest, TaskAcceptedResponse
from audiocraft_api.web.services import services
from audiocraft_api.web.task_submission import respond_by_task, submit_task

blueprint = Blueprint("continuation", __name__)


@blueprint.post("/generate-continuation")
@Operation(
    summary="Continue a recording",
    tag="generation",
    access=Access.GENERATE,
    responses=AUDIO_RESPONSES,
    description=AUDIO_DESCRIPTION,
    form=ContinuationRequest,
    request_headers=PREFER,
    errors=(410, 422, 504),
)
def generate_continuation(fields: ContinuationRequest) -> dict[str, Any] | Response:
    preference = parse_preference(services().config.engine.request_deadline_seconds)
    key = parse_idempotency_key() if preference else None
    spec = _checkpoint(fields)
    with admitted(fields, spec, key) as command:
        with services().request_slots.acquire():  # also while the upload waits for a decoder
            command = _with_uploads(command, fields, spec)
            if not preference:
                return generate_audio_json(command, fields.return_type)
        return respond_by_task(command, fields.return_type, preference)


@blueprint.post("/generate-continuation-async")
@Operation(
    summary="Submit a task that continues a recording",
    tag="tasks",
    access=Access.GENERATE,
    responses={202: (TaskAcceptedResponse,)},
    description="The task and the part of the recording that it continues are stored durably before the server "
    "responds.",
    form=ContinuationTaskRequest,
    headers=LOCATION,
    request_headers=IDEMPOTENCY_KEY,
    errors=(422,),
)
def generate_continuation_async(fields: ContinuationTaskRequest) -> Response:
    spec = _checkpoint(fields)
    with admitted(fields, spec, parse_idempotency_key()) as command:
        with services().request_slots.acquire():  # while the upload waits for a decoder
            command = _with_uploads(command, fields, spec)
        return task_accepted_response(submit_task(command, fields.webhook_url))


def _checkpoint(fields: ContinuationFields) -> ModelSpec:
    """Return the model; with a melody, it must follow one. Raises InvalidRequest."""
    catalog = services().catalog
    has_melody = fields.melody is not None or fields.notes is not None
    return catalog.melody_checkpoint(fields.model_size) if has_melody else catalog.get(fields.model_size)


def _with_uploads(command: GenerateCommand, fields: ContinuationFields, spec: ModelSpec) -> GenerateCommand:
    """Decode the recording and the melody. Raises InvalidRequest and as `UploadDecoder.decode`."""
    command = with_melody(command, fields)
    audio = services().uploads.decode(cast(BinaryIO, fields.audio.stream), "audio")
    return continued(
        command, audio, fields.part, include_input=fields.include_input, window_seconds=spec.window_seconds
    )
