"""Settings of how much a caller may ask for: bursts, quotas, tasks at a time."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section
from audiocraft_api.core.constants import MAX_DURATION_SECONDS, MAX_PROMPT_CHARACTERS, MIN_DURATION_SECONDS

MAX_PER_MINUTE = 10_000  # the time of each request of the last minute is remembered


class LimitSettings(Section):
    """Settings of how much a caller may ask for: bursts, quotas, tasks at a time."""

    concurrent_tasks: int = Field(
        0, ge=0, description="Tasks of one key that wait or run at a time; over it the answer is 429. 0 is no limit."
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        le=MAX_PER_MINUTE,
        description="Generations that a key may ask for within a minute, unless it has its own limit; where no keys are "
        "configured, an address. 0 is no limit, here and below.",
    )
    address_requests_per_minute: int = Field(
        0,
        ge=0,
        le=MAX_PER_MINUTE,
        description="Generations that an address (a /64 of IPv6) may ask for within a minute, whatever its keys; wrong "
        "keys count too.",
    )
    requests_per_day: int = Field(0, ge=0, description="Generations that a key may ask for on a day (UTC).")
    audio_seconds_per_day: int = Field(0, ge=0, description="Seconds of audio that a key may ask for on a day (UTC).")
    concurrent_requests: int = Field(
        0,
        ge=0,
        description="Generations, streams and uploads of a key that this server answers at the same time; a task "
        "counts until it is accepted.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="Proxies before this server, each of which adds the address it sees to `X-Forwarded-For`. With 0 "
        "that header is not believed.",
    )
    max_prompt_characters: int = Field(
        MAX_PROMPT_CHARACTERS, ge=1, le=MAX_PROMPT_CHARACTERS, description="Longest prompt."
    )
    max_duration_seconds: float = Field(
        MAX_DURATION_SECONDS, ge=MIN_DURATION_SECONDS, le=MAX_DURATION_SECONDS, description="Longest audio."
    )
