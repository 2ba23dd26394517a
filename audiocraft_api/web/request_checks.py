"""Checks of a validated request against the limits of its model and of this server."""

from __future__ import annotations

from typing import Any

from audiocraft_api.audio.notes import DEFAULT_BPM, line_of_notes, parse_notes
from audiocraft_api.audio.upload_decoder import MIN_SECONDS
from audiocraft_api.config import Config
from audiocraft_api.core.constants import MAX_LONG_DURATION_SECONDS, MIN_DURATION_SECONDS
from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.web.schemas.forms import ContinuationFields, FormFields
from audiocraft_api.web.schemas.generation import GenerationFields, TextFields
from audiocraft_api.web.services import services

MUSICAL_FIELDS = ("bpm", "key", "time_signature")  # that only models of music understand


def require_live(spec: ModelSpec, field: str) -> None:
    """Raise InvalidRequest for a model that cannot change its prompts while it plays."""
    if spec.melody:
        catalog = services().catalog
        names = ", ".join(other.name for other in catalog if catalog.is_allowed(other) and not other.melody)
        raise refusal(field, f"must name a model that can play live, which {spec.name} cannot: {names}")


def require_music(spec: ModelSpec, fields: Any) -> None:
    """Raise InvalidRequest for a control of music that a model of sound effects does not understand."""
    for name in MUSICAL_FIELDS if spec.kind == "sound_effects" else ():
        if getattr(fields, name, None) is not None:
            raise refusal(name, f"must be left out for the model {spec.name}, which generates sound effects")


def check_texts(fields: GenerationFields, config: Config) -> None:
    """Raise InvalidRequest for a text beyond the limit of the server."""
    max_characters = config.limits.max_prompt_characters
    is_whole = fields.prompt is not None
    for index, part in enumerate(fields.parts):
        for name, text in (("prompt", part.description), ("negative_prompt", part.negative_description)):
            if text is not None and len(text) > max_characters:
                rule = f"must have at most {max_characters} characters on this server"
                raise refusal(name, rule) if is_whole else refusal("segments", rule, f"segments[{index}].{name}")


def longest_seconds(spec: ModelSpec, config: Config) -> float:
    return min(spec.max_duration_seconds, config.limits.max_duration_seconds)


def check_duration(fields: GenerationFields, spec: ModelSpec, config: Config) -> None:
    """Raise InvalidRequest for a duration beyond the limits of the route, the model or the server."""
    is_whole = fields.prompt is not None
    field, subject = ("duration", "duration") if is_whole else ("segments", "The total duration of segments")
    if fields.seconds < MIN_DURATION_SECONDS:
        raise refusal(field, f"must be at least {MIN_DURATION_SECONDS:g}", subject)
    if fields.seconds > fields.LONGEST:
        raise refusal(field, f"must be at most {fields.LONGEST:g}", subject)
    if fields.seconds > spec.max_duration_seconds:
        raise refusal(field, f"must be at most {spec.max_duration_seconds:g} for the model {spec.name}", subject)
    if fields.seconds > config.limits.max_duration_seconds:
        raise refusal(field, f"must be at most {config.limits.max_duration_seconds:g} on this server", subject)
    if fields.n * fields.seconds > MAX_LONG_DURATION_SECONDS:
        most = int(MAX_LONG_DURATION_SECONDS // fields.seconds)
        raise refusal("n", f"must be at most {most} for {fields.seconds:g} seconds of audio each")


def check_controls(fields: GenerationFields, spec: ModelSpec, seconds: float) -> None:
    """Raise InvalidRequest for a control that would have no effect or that the model cannot honor.

    `seconds` of audio are generated.
    """
    require_music(spec, fields)
    if seconds > spec.window_seconds <= spec.stride(fields.extend_stride):
        raise refusal("extend_stride", f"must be less than {spec.window_seconds:g} for the model {spec.name}")
    if fields.cfg_coef == 1 and any(part.negative_description is not None for part in fields.parts):
        field = "segments" if fields.negative_prompt is None else "negative_prompt"
        raise refusal(field, "has no effect with a cfg_coef of 1; use a higher cfg_coef", "negative_prompt")
    check_fades(fields, fields.seconds)
    if isinstance(fields, ContinuationFields):
        fields.part.check(spec.window_seconds)
    is_by_reference = isinstance(fields, TextFields) and fields.continue_from is not None
    if spec.melody and not is_by_reference:  # otherwise the windows depend on the audio that is continued
        check_segments_of_windows(fields, spec)


def check_notes(fields: GenerationFields, config: Config) -> None:
    """Raise InvalidRequest for notes beyond the limits of the server."""
    if not isinstance(fields, FormFields) or fields.notes is None:
        return
    notes, bpm = parse_notes(fields.notes), fields.bpm or DEFAULT_BPM
    if len(notes) > config.audio.max_melody_notes:
        raise refusal("notes", f"must have at most {config.audio.max_melody_notes:,} notes and rests on this server")
    seconds, longest = line_of_notes(notes, bpm).seconds, config.audio.max_melody_seconds
    if not MIN_SECONDS <= seconds <= longest:
        bound = f"at least {MIN_SECONDS:g}" if seconds < MIN_SECONDS else f"at most {longest:g}"
        raise refusal("notes", f"must be {bound} seconds long, and have {seconds:g} at {bpm} beats per minute")


def check_fades(fields: GenerationFields, seconds: float) -> None:
    """Raise InvalidRequest for fades that together are longer than `seconds` of new audio."""
    for name, other, other_name in (("fade_in", 0.0, ""), ("fade_out", fields.fade_in, " together with fade_in")):
        if getattr(fields, name) + other > seconds:
            raise refusal(name, f"must be at most {seconds:g} seconds{other_name}, the duration of the audio")


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
            raise refusal(
                "segments",
                f"would never be played: the model {spec.name} changes its prompt at {times} seconds only. For changes "
                f"at any time, use one of: {models}",
                f"segments[{index}]",
            )


def refusal(field: str, rule: str, subject: str = "") -> InvalidRequest:
    """Return an error of a field; `subject` is what the sentence speaks of if it is not the field."""
    sentence = f"{subject or field} {rule}."
    return InvalidRequest(sentence, {field: [sentence]})
