"""The rules of requests for loops: what they need, what does not go together with them, and how long they are."""

from __future__ import annotations

from audiocraft_api.audio.looping import LoopShape, beats_per_bar
from audiocraft_api.core.constants import DEFAULT_CANDIDATES, MAX_LONG_DURATION_SECONDS, MIN_DURATION_SECONDS
from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.web.schemas.forms import ContinuationFields
from audiocraft_api.web.schemas.generation import LOOP_FORMATS, FileFields, GenerationFields, TextFields

EXCLUDED = ("duration", "segments", "continue_from", "performance", "fade_in", "fade_out", "trim_silence")


def loop_shape_of(fields: GenerationFields) -> LoopShape | None:
    """Return the length of the loop that a request asks for, None without one. Raises InvalidRequest."""
    if not isinstance(fields, FileFields):
        return None
    if not fields.loop:
        _refuse_if(fields.bars is not None, "bars", "needs loop")
        _refuse_if(fields.candidates != DEFAULT_CANDIDATES, "candidates", "needs loop")
        return None
    _refuse_if(isinstance(fields, ContinuationFields), "loop", "cannot be combined with audio to continue")
    for name in EXCLUDED:
        is_given = name in fields.model_fields_set and (name == "duration" or getattr(fields, name))
        length = "; the length is bars × beats × 60 / bpm seconds" if name == "duration" else ""
        _refuse_if(bool(is_given), name, f"cannot be combined with loop{length}")
    for name in ("bpm", "bars"):
        _refuse_if(getattr(fields, name) is None, name, "is required with loop")
    _refuse_if(
        fields.output_format not in LOOP_FORMATS,
        "output_format",
        f"must be one of {', '.join(LOOP_FORMATS)} with loop; the other formats add silence at the ends",
    )
    assert isinstance(fields, GenerationFields)
    assert fields.bpm is not None
    assert fields.bars is not None
    return LoopShape(fields.bpm, fields.bars, beats_per_bar(fields.time_signature))


def check_loop_size(fields: GenerationFields, shape: LoopShape, longest_seconds: float) -> None:
    """Refuse a loop that is too short or too long, and more candidates than may be generated. Raises InvalidRequest."""
    assert isinstance(fields, FileFields)
    seconds = shape.seconds
    length = f"; {shape.bars} bars at {shape.bpm} bpm have {seconds:.4g}"
    _refuse_if(seconds < MIN_DURATION_SECONDS, "bars", f"must have at least {MIN_DURATION_SECONDS:g} seconds{length}")
    _refuse_if(seconds > longest_seconds, "bars", f"must have at most {longest_seconds:g} seconds{length}")
    each = fields.candidates * shape.generated_seconds
    for name, number, one in (("candidates", fields.candidates, shape.generated_seconds), ("n", fields.n, each)):
        most = max(1, int(MAX_LONG_DURATION_SECONDS // one))
        _refuse_if(number > most, name, f"must be at most {most} for {one:g} seconds of audio each")


def reject_loop(fields: TextFields) -> None:
    """Refuse a loop of a performance, which is as long as it was played. Raises InvalidRequest."""
    is_loop = isinstance(fields, FileFields) and fields.loop
    _refuse_if(is_loop, "loop", "cannot be combined with performance")


def _refuse_if(is_wrong: bool, field: str, rule: str) -> None:
    if is_wrong:
        sentence = f"{field} {rule}."
        raise InvalidRequest(sentence, {field: [sentence]})
