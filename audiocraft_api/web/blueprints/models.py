"""The models of this server: what each can do, and its license."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.schemas import ModelResponse, ModelsResponse
from audiocraft_api.web.services import services

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
@Operation(summary="List the models", tag="models", access=Access.READ, responses={200: (ModelsResponse,)})
def models() -> dict[str, Any]:
    loaded = set(services().cache.loaded_names())
    described = [_describe(spec, spec.name in loaded) for spec in services().catalog]
    return ModelsResponse(models=described).model_dump()


def _describe(spec: ModelSpec, loaded: bool) -> ModelResponse:
    return ModelResponse(
        name=spec.name,
        description=spec.description,
        checkpoint=spec.checkpoint,
        revision=spec.revision,
        loaded_revision=services().cache.revision(spec.name),
        sha256=spec.sha256,
        codec_sha256=spec.codec_sha256,
        text=True,
        melody=spec.melody,
        channels=spec.channels,
        sample_rate=spec.sample_rate,
        max_duration=spec.max_duration_seconds,
        loaded=loaded,
        licence=spec.licence,
        commercial_use=spec.commercial_use,
        allowed=services().catalog.is_allowed(spec),
    )
