"""Settings: rate limits, quotas and maximum request sizes."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section
from audiocraft_api.core.constants import MAX_LONG_DURATION_SECONDS, MAX_PROMPT_CHARACTERS, MIN_DURATION_SECONDS

MAX_PER_MINUTE = 10_000  # the rate limiter stores the time of each request of the last minute


class LimitSettings(Section):
    """Rate limits, quotas and maximum request sizes."""

    concurrent_tasks: int = Field(
        0, ge=0, description="Maximum number of unfinished tasks of one key. Further tasks get 429. 0: no limit."
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        le=MAX_PER_MINUTE,
        description="Maximum number of generations per minute and key, or per address when no keys are "
        "configured. A limit set for a key takes precedence. 0: no limit.",
    )
    address_requests_per_minute: int = Field(
        0,
        ge=0,
        le=MAX_PER_MINUTE,
        description="Maximum number of generations per minute and client address (IPv6: /64 network), whatever "
        "the key. Failed authentication counts too. 0: no limit.",
    )
    requests_per_day: int = Field(
        0, ge=0, description="Maximum number of generations per day (UTC) and key. 0: no limit."
    )
    audio_seconds_per_day: int = Field(
        0, ge=0, description="Maximum seconds of audio per day (UTC) and key. 0: no limit."
    )
    concurrent_requests: int = Field(
        0,
        ge=0,
        description="Maximum number of concurrent generations, streams and uploads of one key on this server. "
        "A task counts until it is accepted. 0: no limit.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="Number of proxies in front of this server that append to `X-Forwarded-For`. 0: the header "
        "is ignored.",
    )
    max_prompt_characters: int = Field(
        MAX_PROMPT_CHARACTERS, ge=1, le=MAX_PROMPT_CHARACTERS, description="Maximum length of a prompt."
    )
    max_duration_seconds: float = Field(
        MAX_LONG_DURATION_SECONDS,
        ge=MIN_DURATION_SECONDS,
        le=MAX_LONG_DURATION_SECONDS,
        description="Maximum duration of generated audio. `/generate` and `/generate-with-melody` accept at most 30 "
        "seconds in any case.",
    )
