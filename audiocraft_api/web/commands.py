"""Writes a validated request as the command that the generation service takes."""

from __future__ import annotations

from typing import Any

from audiocraft_api.audio.notes import DEFAULT_BPM
from audiocraft_api.config import Config
from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.performance_recipe import performance_of
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.auth import caller
from audiocraft_api.web.loops import reject_loop
from audiocraft_api.web.request_checks import check_fades, refusal, require_live
from audiocraft_api.web.schemas.forms import FormFields
from audiocraft_api.web.schemas.generation import FileFields, GenerationFields, TextFields
from audiocraft_api.web.schemas.performance import PerformanceFields
from audiocraft_api.web.services import services


def command_of(fields: GenerationFields, spec: ModelSpec, config: Config) -> GenerateCommand:
    has_segments = isinstance(fields, TextFields) and fields.segments is not None
    return GenerateCommand(
        prompt=fields.parts[0].description,
        model=spec.name,
        duration_seconds=fields.seconds,
        output_format=fields.output_format,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        cfg_coef=fields.cfg_coef,
        extend_stride_seconds=spec.stride(fields.extend_stride),
        negative_prompt=None if has_segments else fields.negative_prompt,
        segments=fields.parts if has_segments else (),
        seed=fields.seed,
        n=fields.n,
        audio_owner=caller().owner if config.access.audio_requires_key else None,
        key=fields.key,
        time_signature=fields.time_signature,
        **_notes(fields),
        **_finishing(fields),
    )


def _notes(fields: GenerationFields) -> dict[str, Any]:
    """Return the fields of a command that describe a melody of notes; its tempo is always one of them."""
    if not isinstance(fields, FormFields) or fields.notes is None:
        return {"bpm": fields.bpm}
    return {"notes": fields.notes, "bpm": fields.bpm or DEFAULT_BPM}


def _finishing(fields: GenerationFields) -> dict[str, Any]:
    """Return the fields of a command that finish or measure its audio."""
    finishing: dict[str, Any] = {"fade_in_seconds": fields.fade_in, "fade_out_seconds": fields.fade_out}
    if isinstance(fields, FileFields):
        names = ("loudness", "trim_silence", "analysis", "loop", "bars", "candidates", "stems")
        finishing |= {name: getattr(fields, name) for name in names}
    return finishing


def performance_command(fields: TextFields, performance: PerformanceFields) -> GenerateCommand:
    """Check a performance. Raises InvalidRequest."""
    reject_loop(fields)
    config, spec = services().config, services().catalog.get(performance.model)
    require_live(spec, "performance")
    seconds = performance.frames / FRAME_RATE
    longest = min(fields.LONGEST, spec.max_duration_seconds, config.limits.max_duration_seconds)
    if seconds > longest:
        raise refusal("performance", f"must have at most {longest:g} seconds", "performance.frames")
    stride = spec.stride(performance.extend_stride)
    if stride >= spec.window_seconds:
        raise refusal("performance", f"must be less than {spec.window_seconds:g}", "performance.extend_stride")
    check_fades(fields, seconds)
    return GenerateCommand(
        prompt=performance.changes[0].prompts[0].text,
        model=spec.name,
        duration_seconds=seconds,
        output_format=fields.output_format,
        seed=performance.seed,
        extend_stride_seconds=stride,
        performance=performance_of(performance.model_dump()),
        audio_owner=caller().owner if config.access.audio_requires_key else None,
        **_finishing(fields),
    )
