"""The messages of Lyria RealTime's clients, and what they mean in those of this API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from audiocraft_api.core.constants import (
    DEFAULT_CFG_COEF,
    DEFAULT_TOP_K,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
)
from audiocraft_api.core.performance import MAX_LIVE_PROMPTS
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.field_types import Seed

# Fields of the config that MusicGen cannot honor, with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "density": (),
    "brightness": (),
    "mute_bass": (False,),
    "mute_drums": (False,),
    "only_bass_and_drums": (False,),
    "music_generation_mode": ("QUALITY", "MUSIC_GENERATION_MODE_UNSPECIFIED"),
}
UNSPECIFIED = "SCALE_UNSPECIFIED"


class LyriaFields(RequestSchema):
    """Names are in camel case or with underscores, as in protobuf's JSON; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False)


class Setup(LyriaFields):
    model: str


class LyriaPrompt(LyriaFields):
    text: str
    weight: float


class ClientContent(LyriaFields):
    weighted_prompts: list[LyriaPrompt]


class MusicGenerationConfig(LyriaFields):
    """Replaces the whole config: what is left out has its default."""

    temperature: float | None = None
    top_k: int | None = None
    seed: Seed | None = None
    guidance: float | None = None
    bpm: int | None = None
    scale: str | None = None
    density: Any = None
    brightness: Any = None
    mute_bass: Any = None
    mute_drums: Any = None
    only_bass_and_drums: Any = None
    music_generation_mode: Any = None


class ClientMessage(LyriaFields):
    setup: Setup | None = None
    client_content: ClientContent | None = None
    music_generation_config: MusicGenerationConfig | None = None
    playback_control: str | None = None


def blended(prompts: Iterable[LyriaPrompt]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the prompts as this API takes them, and the texts of those that are beyond what it can blend.

    Equal texts are one prompt, and weights of 0 are none. The heaviest prompts are kept.
    """
    weights: dict[str, float] = {}
    for prompt in prompts:
        weights[prompt.text] = weights.get(prompt.text, 0.0) + prompt.weight
    heard = {text: weight for text, weight in weights.items() if weight}
    by_weight = sorted(heard, key=lambda text: -abs(heard[text]))
    kept, left_out = set(by_weight[:MAX_LIVE_PROMPTS]), by_weight[MAX_LIVE_PROMPTS:]
    return [{"text": text, "weight": weight} for text, weight in heard.items() if text in kept], left_out


def controls_of(config: MusicGenerationConfig) -> dict[str, Any]:
    """Return all controls that a config determines, under the names of this API."""
    temperature = 1.0 if config.temperature is None else config.temperature
    return {
        "temperature": min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE),
        "top_k": DEFAULT_TOP_K if config.top_k is None else config.top_k,
        "cfg_coef": DEFAULT_CFG_COEF if config.guidance is None else config.guidance,
        "bpm": config.bpm,
        "key": None if config.scale in (None, UNSPECIFIED) else _key_of(str(config.scale)),
    }


def unsupported_in(config: MusicGenerationConfig) -> list[str]:
    """Return the names of the fields that have a value which cannot be honored."""
    given = {name: getattr(config, name) for name in UNSUPPORTED}
    return [to_camel(name) for name, value in given.items() if value is not None and value not in UNSUPPORTED[name]]


def _key_of(scale: str) -> str:
    """Return the major key of a scale: `D_FLAT_MAJOR_B_FLAT_MINOR` is `Db major`. Others are refused later."""
    note, _, rest = scale.upper().partition("_")
    return f"{note}b major" if rest.startswith("FLAT") else f"{note} major"
