"""ElevenLabs' composition plans: as segments of a request, and made from a prompt by simple rules."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from audiocraft_api.core.constants import MAX_SEGMENTS
from audiocraft_api.storage.base import LINK
from audiocraft_api.web.compat.translation import refusal
from audiocraft_api.web.parsing import validate
from audiocraft_api.web.schemas.base import RequestSchema

SECTION_MILLISECONDS = 3_000, 120_000
# Where each section of a plan ends, as a part of the whole, and its styles.
SHORT_SONG = (("Main", 1.0, ("full arrangement",)),)
SONG = (
    ("Intro", 0.2, ("sparse", "intro")),
    ("Main", 0.6, ("full arrangement",)),
    ("Variation", 0.85, ("full arrangement", "variation")),
    ("Outro", 1.0, ("calmer", "outro")),
)
SHORT_MILLISECONDS = 20_000

Styles = Annotated[list[str], Field(default_factory=list, max_length=50)]


class _Open(RequestSchema):
    model_config = ConfigDict(extra="ignore")


class TimeRange(_Open):
    start_ms: int = Field(ge=0)
    end_ms: int = Field(gt=0)


class Source(_Open):
    song_id: Annotated[str, Field(pattern=rf"^{LINK.pattern}$")]
    range: TimeRange


class Section(_Open):
    """A section of `music_v1`."""

    section_name: str = ""
    positive_local_styles: Styles
    negative_local_styles: Styles
    duration_ms: int = Field(ge=SECTION_MILLISECONDS[0], le=SECTION_MILLISECONDS[1])
    source_from: Source | None = None


class Chunk(_Open):
    """A chunk of `music_v2`: new audio, or a part of a song if it has a `song_id`."""

    text: str = ""
    positive_styles: Styles
    negative_styles: list[str] | None = Field(None, max_length=50)
    duration_ms: int | None = Field(None, ge=SECTION_MILLISECONDS[0], le=SECTION_MILLISECONDS[1])
    conditioning_ref: dict[str, Any] | None = None
    song_id: str | None = None
    range: TimeRange | None = None


class Plan(_Open):
    """A plan of `music_v1`, with sections, or of `music_v2`, with chunks."""

    positive_global_styles: Styles
    negative_global_styles: Styles
    sections: Annotated[list[Section], Field(min_length=1, max_length=MAX_SEGMENTS)] | None = None
    chunks: Annotated[list[Chunk], Field(min_length=1, max_length=MAX_SEGMENTS)] | None = None


class _Planned(_Open):
    composition_plan: Plan


def fields_of_plan(plan: Any) -> dict[str, Any]:
    """Return the `segments` and the `continue_from` of a plan. Raises InvalidRequest."""
    found = validate(_Planned, {"composition_plan": plan}, strict=True).composition_plan
    if (found.sections is None) == (found.chunks is None):
        raise refusal("composition_plan", "must have either sections or chunks.")
    sources: list[Source | None] = []
    segments: list[dict[str, Any]] = []
    parts: list[Section | Chunk] = [*(found.sections or ()), *(found.chunks or ())]
    for number, part in enumerate(parts):
        name = f"composition_plan.{'sections' if found.sections else 'chunks'}[{number}]"
        source = part.source_from if isinstance(part, Section) else _source(part, name)
        if source and number:
            raise refusal("composition_plan", f"can reuse a song in its first part only, and not in {name}.")
        sources.append(source)
        if source is None:
            segments.append(_segment(found, part, name))
    if not segments:
        raise refusal("composition_plan", "must have a part that is new.")
    return {"segments": segments} | ({"continue_from": _continued(sources[0])} if sources[0] else {})


def plan_of(prompt: str, milliseconds: int, *, has_chunks: bool) -> dict[str, Any]:
    """Return a plan for a prompt, by rules: its parts are styles, words after "no" and "without" are negative ones."""
    parts = [part.strip() for part in re.split(r"[,.;\n]+", prompt) if part.strip()]
    negative = [found[1] for part in parts if (found := re.fullmatch(r"(?:no|without) (.+)", part, re.IGNORECASE))]
    positive = [part for part in parts if not re.match(r"(?:no|without) ", part, re.IGNORECASE)]
    form = SHORT_SONG if milliseconds < SHORT_MILLISECONDS else SONG
    ends = [0, *(round(milliseconds * end / 1000) * 1000 for _, end, _ in form[:-1]), milliseconds]
    timed = [
        (name, list(styles), end - start) for (name, _, styles), (start, end) in zip(form, pairwise(ends), strict=True)
    ]
    if has_chunks:
        return {
            "chunks": [
                {"text": f"[{name}]", "duration_ms": length, "positive_styles": positive + styles}
                | {"negative_styles": negative, "context_adherence": "high"}
                for name, styles, length in timed
            ]
        }
    return {
        "positive_global_styles": positive,
        "negative_global_styles": negative,
        "sections": [
            {"section_name": name, "positive_local_styles": styles, "negative_local_styles": []}
            | {"duration_ms": length, "lines": []}
            for name, styles, length in timed
        ],
    }


def _segment(plan: Plan, part: Section | Chunk, name: str) -> dict[str, Any]:
    if isinstance(part, Section):
        positive = plan.positive_global_styles + part.positive_local_styles
        negative = plan.negative_global_styles + part.negative_local_styles
    else:
        positive, negative = part.positive_styles, part.negative_styles or []
    if part.duration_ms is None:
        raise refusal("composition_plan", f"must have a duration_ms in {name}.")
    if not any(style.strip() for style in positive):
        raise refusal("composition_plan", f"must have a positive style for {name}.")
    segment = {"prompt": ", ".join(positive), "duration": part.duration_ms / 1000}
    return segment | ({"negative_prompt": ", ".join(negative)} if negative else {})


def _source(chunk: Chunk, name: str) -> Source | None:
    if chunk.conditioning_ref is not None:
        raise refusal("composition_plan", f"cannot have a conditioning_ref, as {name} has.")
    if chunk.song_id is None or chunk.range is None:
        return None
    return validate(Source, {"song_id": chunk.song_id, "range": chunk.range}, strict=True)


def _continued(source: Source) -> dict[str, Any]:
    times = source.range
    return {"audio_url": f"/audio/{source.song_id}", "start": times.start_ms / 1000, "end": times.end_ms / 1000}
