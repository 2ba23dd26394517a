"""Admission: what a request must pass before it reaches the engine, and what it holds until its response ends.

Order of the checks: credential (`auth`), size and shape (`parsing`), then here: the model's limits, the prompt policy,
and the caller's limits: per minute, concurrent, per day. The endpoint itself reserves a request or stream slot last.
If anything fails after the daily quota was charged, the charge is refunded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from flask import g, request

from audiocraft_api.access.limits import Admission
from audiocraft_api.access.rate_limiter import RateLimitState
from audiocraft_api.audio.notes import DEFAULT_BPM, line_of_notes, parse_notes
from audiocraft_api.audio.upload_decoder import MIN_SECONDS
from audiocraft_api.config import Config
from audiocraft_api.core.constants import FRAME_RATE, MAX_LONG_DURATION_SECONDS, MIN_DURATION_SECONDS
from audiocraft_api.core.errors import Canceled, InvalidRequest
from audiocraft_api.core.params import Segment
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.performance_recipe import performance_of
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.auth import caller, client_address
from audiocraft_api.web.disconnect import connection_of
from audiocraft_api.web.lifetime import at_response_end
from audiocraft_api.web.loops import check_loop_size, loop_shape_of, reject_loop
from audiocraft_api.web.schemas import (
    ContinuationFields,
    FileFields,
    FormFields,
    GenerationFields,
    PerformanceFields,
    TextFields,
)
from audiocraft_api.web.services import services

MUSICAL_FIELDS = ("bpm", "key", "time_signature")  # that only models of music understand

logger = logging.getLogger(__name__)


@contextmanager
def admitted(
    fields: GenerationFields, spec: ModelSpec, idempotency_key: str | None = None
) -> Iterator[GenerateCommand]:
    """Admit a validated request of the current caller and yield its command.

    The caller's concurrency slot is held until the response ends. The daily quota is charged, and refunded if the
    block raises anything but Canceled, unless `settle_charge` has decided otherwise. With `idempotency_key`, a request
    that repeats an accepted task is not charged.
    Raises InvalidRequest, PromptRefused, ModerationUnavailable, LimitExceeded, StorageUnavailable.
    """
    config = services().config
    shape = loop_shape_of(fields)
    _check_texts(fields, config)
    if shape:
        check_loop_size(fields, shape, min(fields.LONGEST, _longest_seconds(spec, config)))
    else:
        _check_duration(fields, spec, config)
    _check_controls(fields, spec, shape.generated_seconds if shape else fields.seconds)
    _check_notes(fields, config)
    command = _command_of(fields, spec, config)
    if shape:
        command = replace(command, duration_seconds=shape.seconds)
    with _charged(_prompts(fields.parts), command.n * command.generated_seconds, idempotency_key):
        yield command


@contextmanager
def admitted_text(fields: TextFields, idempotency_key: str | None = None) -> Iterator[GenerateCommand]:
    """Admit a request without an uploaded melody: for a model that it names, or for a performance. See `admitted`."""
    if fields.performance is None:
        with admitted(fields, services().catalog.get(fields.model_size), idempotency_key) as command:
            yield command
        return
    performance = fields.performance
    if isinstance(performance, str):
        performance = PerformanceFields.model_validate(services().performances.load(performance, caller().owner))
    command = _performance_command(fields, performance)
    prompts = [prompt.text for change in performance.changes for prompt in change.prompts]
    with _charged(list(dict.fromkeys(prompts)), command.duration_seconds, idempotency_key):
        yield command


@contextmanager
def _charged(prompts: Sequence[str], seconds: float, idempotency_key: str | None) -> Iterator[None]:
    """Refuse prompts that are not allowed, and charge the caller for the block."""
    config = services().config
    for prompt in prompts:
        services().policy.require_allowed(prompt)

    def is_repeat() -> bool:
        return idempotency_key is not None and services().tasks.service.is_repeat(caller().owner, idempotency_key)

    g.admission = services().limits.admit(caller(), client_address(), seconds, is_repeat=is_repeat)
    at_response_end(g.admission.release)
    if config.server.log_prompts:
        for prompt in prompts:
            logger.info("Prompt: %s", prompt)
    try:
        yield
    except Canceled:
        raise  # The engine worked for this client, which chose not to wait.
    except BaseException:
        settle_charge(charged=False)
        raise


@contextmanager
def counted(prompts: Sequence[str] = ()) -> Iterator[None]:
    """Count a request of the current caller that generates no audio; refuse prompts that are not allowed.

    Raises as `admitted`.
    """
    with _charged(prompts, 0.0, None):
        yield


@contextmanager
def admitted_live(prompts: Sequence[str]) -> Iterator[None]:
    """Admit a live session of the current caller for the block, and charge its first second. Raises LimitExceeded.

    The charge is refunded if the block raises an error, unless `settle_charge` has decided otherwise.
    """
    g.admission = admission = services().limits.admit(caller(), client_address(), 1.0)
    if services().config.server.log_prompts:
        for prompt in prompts:
            logger.info("Prompt: %s", prompt)
    try:
        yield
    except BaseException:
        settle_charge(charged=False)
        raise
    finally:
        admission.release()


def settle_charge(*, charged: bool) -> None:
    """Decide whether the current request is charged to the daily quota, whatever happens to it from now on."""
    admission = cast(Admission, g.admission)
    if charged:
        admission.commit()
    else:
        admission.refund()


def charged_windows() -> list[RateLimitState]:
    """Return the limits that the current request was counted against; empty before admission and after a refund."""
    return cast(Admission, g.admission).states if "admission" in g else []


def reserve_stream_slot() -> None:
    """Reserve one of the server's stream slots until the response ends. Raises TooManyStreams, ShuttingDown."""
    at_response_end(services().stream_slots.acquire(connection_of(request.environ)).release)


def _command_of(fields: GenerationFields, spec: ModelSpec, config: Config) -> GenerateCommand:
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


def _performance_command(fields: TextFields, performance: PerformanceFields) -> GenerateCommand:
    """Check a performance. Raises InvalidRequest."""
    reject_loop(fields)
    config, spec = services().config, services().catalog.get(performance.model)
    require_live(spec, "performance")
    seconds = performance.frames / FRAME_RATE
    longest = min(fields.LONGEST, spec.max_duration_seconds, config.limits.max_duration_seconds)
    if seconds > longest:
        raise _refusal("performance", f"must have at most {longest:g} seconds", "performance.frames")
    stride = spec.stride(performance.extend_stride)
    if stride >= spec.window_seconds:
        raise _refusal("performance", f"must be less than {spec.window_seconds:g}", "performance.extend_stride")
    _check_fades(fields, seconds)
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


def require_live(spec: ModelSpec, field: str) -> None:
    """Raise InvalidRequest for a model that cannot change its prompts while it plays."""
    if spec.melody:
        catalog = services().catalog
        names = ", ".join(other.name for other in catalog if catalog.is_allowed(other) and not other.melody)
        raise _refusal(field, f"must name a model that can play live, which {spec.name} cannot: {names}")


def require_music(spec: ModelSpec, fields: Any) -> None:
    """Raise InvalidRequest for a control of music that a model of sound effects does not understand."""
    for name in MUSICAL_FIELDS if spec.kind == "sound_effects" else ():
        if getattr(fields, name, None) is not None:
            raise _refusal(name, f"must be left out for the model {spec.name}, which generates sound effects")


def _prompts(parts: Sequence[Segment]) -> list[str]:
    """Return all texts of a request that describe music, each once."""
    texts = [text for part in parts for text in (part.description, part.negative_description) if text is not None]
    return list(dict.fromkeys(texts))


def _check_texts(fields: GenerationFields, config: Config) -> None:
    """Raise InvalidRequest for a text beyond the limit of the server."""
    max_characters = config.limits.max_prompt_characters
    is_whole = fields.prompt is not None
    for index, part in enumerate(fields.parts):
        for name, text in (("prompt", part.description), ("negative_prompt", part.negative_description)):
            if text is not None and len(text) > max_characters:
                rule = f"must have at most {max_characters} characters on this server"
                raise _refusal(name, rule) if is_whole else _refusal("segments", rule, f"segments[{index}].{name}")


def _longest_seconds(spec: ModelSpec, config: Config) -> float:
    return min(spec.max_duration_seconds, config.limits.max_duration_seconds)


def _check_duration(fields: GenerationFields, spec: ModelSpec, config: Config) -> None:
    """Raise InvalidRequest for a duration beyond the limits of the route, the model or the server."""
    is_whole = fields.prompt is not None
    field, subject = ("duration", "duration") if is_whole else ("segments", "The total duration of segments")
    if fields.seconds < MIN_DURATION_SECONDS:
        raise _refusal(field, f"must be at least {MIN_DURATION_SECONDS:g}", subject)
    if fields.seconds > fields.LONGEST:
        raise _refusal(field, f"must be at most {fields.LONGEST:g}", subject)
    if fields.seconds > spec.max_duration_seconds:
        raise _refusal(field, f"must be at most {spec.max_duration_seconds:g} for the model {spec.name}", subject)
    if fields.seconds > config.limits.max_duration_seconds:
        raise _refusal(field, f"must be at most {config.limits.max_duration_seconds:g} on this server", subject)
    if fields.n * fields.seconds > MAX_LONG_DURATION_SECONDS:
        most = int(MAX_LONG_DURATION_SECONDS // fields.seconds)
        raise _refusal("n", f"must be at most {most} for {fields.seconds:g} seconds of audio each")


def _check_controls(fields: GenerationFields, spec: ModelSpec, seconds: float) -> None:
    """Raise InvalidRequest for a control that would have no effect or that the model cannot honor.

    `seconds` of audio are generated.
    """
    require_music(spec, fields)
    if seconds > spec.window_seconds <= spec.stride(fields.extend_stride):
        raise _refusal("extend_stride", f"must be less than {spec.window_seconds:g} for the model {spec.name}")
    if fields.cfg_coef == 1 and any(part.negative_description is not None for part in fields.parts):
        field = "segments" if fields.negative_prompt is None else "negative_prompt"
        raise _refusal(field, "has no effect with a cfg_coef of 1; use a higher cfg_coef", "negative_prompt")
    _check_fades(fields, fields.seconds)
    if isinstance(fields, ContinuationFields):
        fields.part.check(spec.window_seconds)
    is_by_reference = isinstance(fields, TextFields) and fields.continue_from is not None
    if spec.melody and not is_by_reference:  # otherwise the windows depend on the audio that is continued
        check_segments_of_windows(fields, spec)


def _check_notes(fields: GenerationFields, config: Config) -> None:
    """Raise InvalidRequest for notes beyond the limits of the server."""
    if not isinstance(fields, FormFields) or fields.notes is None:
        return
    notes, bpm = parse_notes(fields.notes), fields.bpm or DEFAULT_BPM
    if len(notes) > config.audio.max_melody_notes:
        raise _refusal("notes", f"must have at most {config.audio.max_melody_notes:,} notes and rests on this server")
    seconds, longest = line_of_notes(notes, bpm).seconds, config.audio.max_melody_seconds
    if not MIN_SECONDS <= seconds <= longest:
        bound = f"at least {MIN_SECONDS:g}" if seconds < MIN_SECONDS else f"at most {longest:g}"
        raise _refusal("notes", f"must be {bound} seconds long, and have {seconds:g} at {bpm} beats per minute")


def _check_fades(fields: GenerationFields, seconds: float) -> None:
    """Raise InvalidRequest for fades that together are longer than `seconds` of new audio."""
    for name, other, other_name in (("fade_in", 0.0, ""), ("fade_out", fields.fade_in, " together with fade_in")):
        if getattr(fields, name) + other > seconds:
            raise _refusal(name, f"must be at most {seconds:g} seconds{other_name}, the duration of the audio")


def check_segments_of_windows(fields: GenerationFields, spec: ModelSpec, seconds_given: float = 0.0) -> None:
    """Raise InvalidRequest for a segment in which no window begins; a model with a prefix would never play it.

    The first window begins with `seconds_given` of audio that is continued.
    """
    begins = [0.0]
    first = spec.window_seconds - seconds_given
    while (begin := first + (len(begins) - 1) * spec.stride(fields.extend_stride)) < fields.seconds:
        begins.append(begin)
    end = 0.0
    for index, part in enumerate(fields.parts):
        start, end = end, end + part.duration_seconds
        if not any(start <= begin < end for begin in begins):
            others = [other.name for other in services().catalog if services().catalog.is_allowed(other)]
            models = ", ".join(name for name in others if not services().catalog.get(name).melody)
            times = ", ".join(f"{begin:g}" for begin in begins)
            raise _refusal(
                "segments",
                f"would never be played: the model {spec.name} changes its prompt at {times} seconds only. For changes "
                f"at any time, use one of: {models}",
                f"segments[{index}]",
            )


def _refusal(field: str, rule: str, subject: str = "") -> InvalidRequest:
    """Return an error of a field; `subject` is what the sentence speaks of if it is not the field."""
    sentence = f"{subject or field} {rule}."
    return InvalidRequest(sentence, {field: [sentence]})
