"""The schemas of performances, which a live session records and a request can generate again."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag

from audiocraft_api.core.constants import (
    DEFAULT_CFG_COEF,
    DEFAULT_TOP_K,
    FRAME_RATE,
    MAX_LIVE_CHANGES,
    MAX_LIVE_SECONDS,
    MAX_TRANSITION_SECONDS,
)
from audiocraft_api.core.performance import MAX_LIVE_PROMPTS
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.field_types import CfgCoef, ExtendStride, Prompt, Seed, Temperature, TopK, TopP, Whole

MAX_WEIGHT = 100.0


def _not_zero(weight: float) -> float:
    if abs(weight) < 1e-6:
        raise ValueError("must not be 0; leave the prompt out")
    return weight


def _playable(prompts: list[LivePromptFields]) -> list[LivePromptFields]:
    if all(prompt.weight < 0 for prompt in prompts):
        raise ValueError("must contain a prompt with a positive weight")
    if len({prompt.text for prompt in prompts}) < len(prompts):
        raise ValueError("must not contain the same text twice")
    return prompts


class LivePromptFields(RequestSchema):
    """A text with a weight. Weights are relative to each other; the music is led away from negative ones."""

    text: Prompt
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT), AfterValidator(_not_zero)] = 1.0


Prompts = Annotated[list[LivePromptFields], Field(min_length=1, max_length=MAX_LIVE_PROMPTS), AfterValidator(_playable)]


Transition = Annotated[
    float, Field(ge=0, le=MAX_TRANSITION_SECONDS, description="Seconds that a change of prompts takes.")
]


class PerformanceChangeFields(RequestSchema):
    """The controls from a frame on. Frames are counted from 0, 50 per second."""

    frame: Whole = Field(ge=0, le=MAX_LIVE_SECONDS * FRAME_RATE)
    prompts: Prompts
    temperature: Temperature = 1.0
    top_k: TopK = DEFAULT_TOP_K
    top_p: TopP = 0.0
    cfg_coef: CfgCoef = DEFAULT_CFG_COEF
    transition: Transition = 0.0
    reset_context: bool = False


def _ascending(changes: list[PerformanceChangeFields]) -> list[PerformanceChangeFields]:
    frames = [change.frame for change in changes]
    if frames[0] != 0 or any(later <= earlier for earlier, later in pairwise(frames)):
        raise ValueError("must begin at frame 0 and have ascending frames")
    return changes


class PerformanceFields(RequestSchema):
    """A performance: what `GET /performances/<id>` returns. Send it to generate the same audio, edited if you like."""

    frames: Whole = Field(ge=1, le=MAX_LIVE_SECONDS * FRAME_RATE, description="Length in frames, 50 per second.")
    changes: Annotated[
        list[PerformanceChangeFields], Field(min_length=1, max_length=MAX_LIVE_CHANGES), AfterValidator(_ascending)
    ]
    model: str = Field(max_length=64)
    seed: Seed
    extend_stride: ExtendStride | None = None
    revision: str | None = Field(None, max_length=256, description="Of the model. Not read.")
    precision: str | None = Field(None, max_length=16, description="Of the engine. Not read.")
    service_version: str | None = Field(None, max_length=64, description="Not read.")
    created: str | None = Field(None, max_length=64, description="Not read.")


PerformanceId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")]


# Names the two types in the locations of errors; `parsing` leaves the names out of its sentences.
PERFORMANCE_TAGS = ("<object>", "<id>")


EitherPerformance = Annotated[
    Annotated[PerformanceFields, Tag(PERFORMANCE_TAGS[0])] | Annotated[PerformanceId, Tag(PERFORMANCE_TAGS[1])],
    Discriminator(
        lambda given: PERFORMANCE_TAGS[isinstance(given, str)] if isinstance(given, dict | str) else None,
        custom_error_type="performance",
        custom_error_message="Input should be an object or the ID of a performance",
    ),
]


# What a performance contains, so that a request for it must not.
PERFORMED = (
    *("prompt", "segments", "duration", "model_size", "seed", "extend_stride", "negative_prompt"),
    *("temperature", "top_k", "top_p", "cfg_coef", "n", "continue_from", "bpm", "key", "time_signature"),
)
