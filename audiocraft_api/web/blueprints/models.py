"""The models of this server: what each can do, and its license."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

from flask import Blueprint

from audiocraft_api.audio.notes import DEFAULT_BPM
from audiocraft_api.core.constants import (
    MAX_BARS,
    MAX_BPM,
    MAX_CANDIDATES,
    MAX_DURATION_SECONDS,
    MAX_FADE_SECONDS,
    MAX_LONG_DURATION_SECONDS,
    MAX_LOUDNESS_LUFS,
    MAX_SEGMENTS,
    MAX_TRANSITION_SECONDS,
    MAX_TRUE_PEAK_DBTP,
    MAX_VARIATIONS,
    MIN_BPM,
    MIN_CONTINUED_SECONDS,
    MIN_DURATION_SECONDS,
    MIN_EXTEND_STRIDE_SECONDS,
    MIN_LOUDNESS_LUFS,
    MIN_SEGMENT_SECONDS,
    SILENCE_DBFS,
)
from audiocraft_api.core.errors import InvalidRequest, NotFound
from audiocraft_api.core.performance import MAX_LIVE_PROMPTS
from audiocraft_api.core.separation import STEMS
from audiocraft_api.generation.model_control import ModelState
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.operations import Access, Operation
from audiocraft_api.web.schemas.field_types import KEY, TimeSignature
from audiocraft_api.web.schemas.generation import LOOP_FORMATS
from audiocraft_api.web.schemas.models import (
    BpmControl,
    ContinuationControl,
    ControlsResponse,
    DurationControl,
    ExtendStrideControl,
    FadeControl,
    KeyControl,
    LiveControl,
    LoadProgressResponse,
    LoopControl,
    LoudnessControl,
    ModelResponse,
    ModelsResponse,
    ModelStateResponse,
    NegativePromptControl,
    NotesControl,
    SegmentsControl,
    StemsControl,
    TimeSignatureControl,
    TrimSilenceControl,
    UnloadQuery,
    VariationsControl,
)
from audiocraft_api.web.services import services

NAME = {"name": "Name of a model, or the ID of its checkpoint on the Hugging Face Hub."}

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
@Operation(summary="List the models", tag="models", access=Access.READ, responses={200: (ModelsResponse,)})
def models() -> dict[str, Any]:
    loaded = set(services().cache.loaded_names())
    states = services().models.states([spec.name for spec in services().catalog])
    described = [_describe(spec, spec.name in loaded, states[spec.name]) for spec in services().catalog]
    return ModelsResponse(models=described).model_dump()


@blueprint.post("/models/<path:name>/load")
@Operation(
    summary="Load a model",
    tag="models",
    access=Access.ADMIN,
    responses={202: (ModelStateResponse,)},
    description="Loads and warms up the model in the background, in the process that responds. `GET /models` has the "
    "progress. A model that is loaded or being loaded stays as it is.",
    parameters=NAME,
    errors=(404, 501, 503),
)
def load(name: str) -> tuple[dict[str, Any], int]:
    spec = _model_called(name)
    services().models.load(spec.name)
    return _state_of(spec), 202


@blueprint.post("/models/<path:name>/unload")
@Operation(
    summary="Unload a model",
    tag="models",
    access=Access.ADMIN,
    responses={202: (ModelStateResponse,)},
    description="Frees the memory of the model in the process that responds. The next request for the model loads it "
    "again. A model that is not loaded stays as it is.",
    query=UnloadQuery,
    parameters=NAME,
    errors=(404, 409, 501),
)
def unload(query: UnloadQuery, name: str) -> tuple[dict[str, Any], int]:
    spec = _model_called(name)
    services().models.unload(spec.name, wait=query.when_busy == "wait")
    return _state_of(spec), 202


def _model_called(name: str) -> ModelSpec:
    """Return a model by name or checkpoint. Raises NotFound."""
    try:
        return services().catalog.called(name)
    except InvalidRequest as error:
        raise NotFound(error.message) from None


def _state_of(spec: ModelSpec) -> dict[str, Any]:
    found = services().models.states([spec.name])[spec.name]
    return ModelStateResponse(name=spec.name, **_state_fields(found)).model_dump()


def _state_fields(found: ModelState) -> dict[str, Any]:
    progress = None if found.progress is None else LoadProgressResponse(**asdict(found.progress))
    return {"state": found.state, "error": found.error, "progress": progress}


def _describe(spec: ModelSpec, loaded: bool, state: ModelState) -> ModelResponse:
    return ModelResponse(
        name=spec.name,
        description=spec.description,
        checkpoint=spec.checkpoint,
        revision=spec.revision,
        loaded_revision=services().cache.revision(spec.name),
        sha256=spec.sha256,
        codec_sha256=spec.codec_sha256,
        kind=spec.kind,
        text=True,
        melody=spec.melody,
        channels=spec.channels,
        sample_rate=spec.sample_rate,
        max_duration=min(spec.max_duration_seconds, MAX_DURATION_SECONDS),
        loaded=loaded,
        **_state_fields(state),
        licence=spec.licence,
        commercial_use=spec.commercial_use,
        allowed=services().catalog.is_allowed(spec),
        controls=_controls(spec),
    )


def _controls(spec: ModelSpec) -> ControlsResponse:
    live = services().config.live
    is_music = spec.kind == "music"
    longest = min(spec.max_duration_seconds, services().config.limits.max_duration_seconds)
    return ControlsResponse(
        duration=DurationControl(
            minimum=MIN_DURATION_SECONDS,
            maximum=longest,
            synchronous_maximum=min(longest, MAX_DURATION_SECONDS),
        ),
        extend_stride=ExtendStrideControl(
            minimum=MIN_EXTEND_STRIDE_SECONDS,
            exclusive_maximum=spec.window_seconds,
            default=spec.extend_stride_seconds,
        ),
        negative_prompt=NegativePromptControl(max_characters=services().config.limits.max_prompt_characters),
        segments=SegmentsControl(
            maximum=MAX_SEGMENTS,
            minimum_duration=MIN_SEGMENT_SECONDS,
            changes_at="window" if spec.melody else "frame",
        ),
        n=VariationsControl(minimum=1, maximum=MAX_VARIATIONS, maximum_total_duration=MAX_LONG_DURATION_SECONDS),
        continuation=ContinuationControl(
            minimum=MIN_CONTINUED_SECONDS, exclusive_maximum=spec.window_seconds, melody=spec.melody
        ),
        bpm=BpmControl(minimum=MIN_BPM, maximum=MAX_BPM) if is_music else None,
        key=KeyControl(pattern=KEY.pattern) if is_music else None,
        time_signature=TimeSignatureControl(values=list(get_args(TimeSignature))) if is_music else None,
        loudness=LoudnessControl(
            minimum=MIN_LOUDNESS_LUFS, maximum=MAX_LOUDNESS_LUFS, maximum_true_peak=MAX_TRUE_PEAK_DBTP
        ),
        fade_in=FadeControl(maximum=MAX_FADE_SECONDS),
        fade_out=FadeControl(maximum=MAX_FADE_SECONDS),
        trim_silence=TrimSilenceControl(threshold=SILENCE_DBFS),
        loop=LoopControl(
            minimum_bars=1, maximum_bars=MAX_BARS, maximum_candidates=MAX_CANDIDATES, formats=list(LOOP_FORMATS)
        )
        if is_music
        else None,
        stems=StemsControl(names=list(STEMS)),
        notes=NotesControl(
            maximum=services().config.audio.max_melody_notes,
            maximum_duration=services().config.audio.max_melody_seconds,
            default_bpm=DEFAULT_BPM,
        )
        if spec.melody
        else None,
        live=None
        if spec.melody
        else LiveControl(
            max_prompts=MAX_LIVE_PROMPTS,
            max_transition=MAX_TRANSITION_SECONDS,
            lead=live.live_lead_seconds,
            max_duration=live.live_max_seconds,
        ),
    )
