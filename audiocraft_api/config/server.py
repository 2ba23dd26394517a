"""Settings of the server: where it listens, its threads, who may call from a page, its log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import CommaList, Section


class ServerSettings(Section):
    """Settings of the server: where it listens, its threads, who may call from a page, its log."""

    bind: str = Field(
        "0.0.0.0:5000", description="Address and port that gunicorn listens on.", pattern=r"^(.+:\d+|unix:.+)$"
    )
    threads: int = Field(64, ge=4, le=1024, description="Request threads of the one worker process.")
    max_synchronous_requests: int = Field(
        0,
        ge=0,
        le=1024,
        description="Requests that may hold a thread while they wait for audio; over it the answer is 503. "
        "0 is a quarter of the threads, or `max_waiting` when that is less.",
    )
    max_streams: int = Field(
        0,
        ge=0,
        le=1024,
        description="StreamSlots of audio or of events, and WebSockets, that may be open, each of which holds a thread; "
        "over it the answer is 503. 0 is a quarter of the threads.",
    )
    socket_timeout_seconds: float = Field(
        30.0, ge=1, le=3600, description="A connection that stalls this long in the middle of a request is closed."
    )
    graceful_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="How long a stopping server lets running requests finish."
    )
    cors_origins: CommaList = Field(
        ("*",), description="Origins that browsers may call from, separated by commas; `*` is any."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level that is logged."
    )
    log_format: Literal["text", "json"] = Field("text", description="Log lines as text or as JSON objects.")
    log_prompts: bool = Field(False, description="Write prompts into the log at INFO.")
