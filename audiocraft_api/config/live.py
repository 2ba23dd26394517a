"""Settings: live sessions."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section
from audiocraft_api.core.constants import MAX_LIVE_SECONDS


class LiveSettings(Section):
    """Live sessions over `/ws/live`."""

    live_max_sessions: int = Field(
        2,
        ge=0,
        le=256,
        description="Maximum number of open live sessions. Each takes one of `max_batch_requests` while it is open. "
        "Further sessions get 503. 0: no live sessions.",
    )
    live_max_sessions_per_key: int = Field(
        1,
        ge=0,
        le=256,
        description="Maximum number of open live sessions of one key, or of one address without keys. Further "
        "sessions get 429. 0: no limit.",
    )
    live_max_seconds: float = Field(
        1800.0, ge=10, le=MAX_LIVE_SECONDS, description="Maximum duration of a live session's music."
    )
    live_max_paused_seconds: float = Field(
        300.0, ge=1, le=86_400, description="End a live session that has been paused for this long."
    )
    live_idle_seconds: float = Field(
        900.0, ge=1, le=86_400, description="End a live session whose client has sent no message for this long."
    )
    live_lead_seconds: float = Field(
        1.5,
        ge=1,
        le=30,
        description="How far a live session may generate ahead of its playback, unless the client asks for less. A "
        "change is heard that much later.",
    )
    live_messages_per_second: float = Field(
        20.0,
        ge=1,
        le=1000,
        description="Maximum rate of a live client's messages, with bursts of five seconds' worth. A session whose "
        "client sends more is closed.",
    )
