"""The schemas of a live session's messages and of performances. The AsyncAPI document is generated from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from audiocraft_api.core.performance import WeightedPrompt
from audiocraft_api.generation.wording import worded, wording
from audiocraft_api.tasks.view import RecipePerformanceResponse
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.field_types import CfgCoef, ExtendStride, Key, Seed, Temperature, TopK, TopP, Whole
from audiocraft_api.web.schemas.performance import LivePromptFields, Prompts, Transition

Bpm = Annotated[Whole, Field(ge=20, le=300, description="Tempo, added to the prompts in words; null removes it.")]
LiveKey = Annotated[Key, Field(description="Key, such as `C# minor`, added to the prompts in words; null removes it.")]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


MAX_ID_CHARACTERS = 64


class LiveMessage(RequestSchema):
    """What all messages of a client have in common."""

    id: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | None = Field(
        None, description="Returned with the answer."
    )


class _ControlFields(LiveMessage):
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    cfg_coef: CfgCoef | None = None
    bpm: Bpm | None = None
    key: LiveKey | None = None


class StartMessage(_ControlFields):
    """The first message: begins the session. Omitted controls have the defaults of `/generate`."""

    type: Literal["start"]
    prompts: Prompts
    model_size: str = Field("small", max_length=64, description="Name of a model that can play live.")
    seed: Seed | None = Field(None, description="Random when omitted.")
    format: Literal["pcm", "opus"] = Field(
        "pcm", description="`pcm`: 16-bit samples, little-endian, interleaved. `opus`: Ogg pages."
    )
    duration: float | None = Field(None, ge=1, description="Seconds after which the session ends.")
    lead: float | None = Field(None, ge=1, le=30, description="Seconds to generate ahead of playback, at most.")
    transition: Transition = 0.0
    extend_stride: ExtendStride | None = None
    paused: bool = Field(False, description="Whether to wait for `play` once the lead is generated.")


class PromptsMessage(LiveMessage):
    """Replaces the prompts."""

    type: Literal["prompts"]
    prompts: Prompts
    transition: Transition | None = Field(None, description="In place of the session's.")


class ConfigMessage(_ControlFields):
    """Changes the given controls."""

    type: Literal["config"]


class TransitionMessage(LiveMessage):
    """Sets how long changes of prompts take from now on."""

    type: Literal["transition"]
    seconds: Transition


class PlayMessage(LiveMessage):
    """Starts playback, or goes on after `pause`."""

    type: Literal["play"]


class PauseMessage(LiveMessage):
    """Pauses playback, and with it the generation."""

    type: Literal["pause"]


class ResetContextMessage(LiveMessage):
    """Begins new music, which does not continue what was played so far."""

    type: Literal["reset_context"]


class SeekBackMessage(LiveMessage):
    """Forgets the music from a position on, and goes on from there."""

    type: Literal["seek_back"]
    position: Seconds = Field(description="Seconds of the performance to keep.")
    prompts: Prompts | None = Field(None, description="The prompts from there on; those of that time when omitted.")


class PlaybackMessage(LiveMessage):
    """Reports how far playback is. Without reports, the server counts by its clock."""

    type: Literal["playback"]
    position: Seconds = Field(description="Seconds of the performance that were played.")


class StopMessage(LiveMessage):
    """Ends the session with the music that is complete."""

    type: Literal["stop"]


MESSAGES: dict[str, type[LiveMessage]] = {
    schema.model_fields["type"].annotation.__args__[0]: schema  # type: ignore[union-attr]
    for schema in (
        StartMessage,
        PromptsMessage,
        ConfigMessage,
        TransitionMessage,
        PlayMessage,
        PauseMessage,
        ResetContextMessage,
        SeekBackMessage,
        PlaybackMessage,
        StopMessage,
    )
}


def weighted(prompts: Iterable[LivePromptFields]) -> tuple[WeightedPrompt, ...]:
    """Return the prompts of a message."""
    return tuple(WeightedPrompt(prompt.text, prompt.weight) for prompt in prompts)


class PerformanceResponse(RecipePerformanceResponse):
    """A performance, which can be generated again."""

    revision: str = Field(description="Revision of the model that made it.")
    precision: str = Field(description="Precision of the engine that made it. Another one makes other music.")
    service_version: str
    created: str


def spoken(prompts: Iterable[WeightedPrompt], wishes: Mapping[str, object]) -> tuple[WeightedPrompt, ...]:
    """Return prompts with a tempo and a key, in words, added to those with a positive weight."""
    words = wording(wishes)
    return tuple(
        prompt._replace(text=worded(prompt.text, words)) if prompt.weight > 0 else prompt for prompt in prompts
    )
