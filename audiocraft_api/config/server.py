"""Settings: listening address, threads, shutdown, CORS and logging."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from audiocraft_api.config.section import CommaList, Section


class ServerSettings(Section):
    """Listening address, threads, shutdown, CORS and logging."""

    bind: str = Field(
        "0.0.0.0:5000",
        description="Address and port to listen on, or `unix:` and a path.",
        pattern=r"^(.+:\d+|unix:.+)$",
    )
    threads: int = Field(64, ge=4, le=1024, description="Number of threads that serve requests.")
    max_synchronous_requests: int = Field(
        0,
        ge=0,
        le=1024,
        description="Maximum number of requests that wait for audio at the same time; each occupies a thread. "
        "Further requests get 503. 0: a quarter of `threads`, but at most `max_waiting`.",
    )
    max_streams: int = Field(
        0,
        ge=0,
        le=1024,
        description="Maximum number of open audio streams, event streams and WebSockets; each occupies a "
        "thread. Further requests get 503. 0: a quarter of `threads`.",
    )
    socket_timeout_seconds: float = Field(
        30.0, ge=1, le=3600, description="Close a connection that stalls for this long in the middle of a request."
    )
    keepalive_seconds: int = Field(
        75,
        ge=1,
        le=3600,
        description="How long an idle connection stays open. Must be longer than a proxy keeps idle connections to the "
        "server (60 s is common); otherwise the proxy sends requests over connections that are being closed, and its "
        "clients get 502.",
    )
    graceful_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="How long a stopping server lets running requests finish."
    )
    cors_origins: CommaList = Field(
        ("*",),
        description="Comma-separated list of origins whose pages may call the API from a browser; `*` allows any.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Minimum severity of log messages."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: `text`, or `json` for one JSON object per line."
    )
    log_prompts: bool = Field(False, description="Log prompts at level INFO.")
