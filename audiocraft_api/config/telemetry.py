"""Settings: the admin listener, readiness and traces."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class TelemetrySettings(Section):
    """The admin listener, readiness and traces."""

    admin_bind: str = Field(
        "",
        pattern=r"^(.+:\d+)?$",
        description="Address and port of the admin listener, which serves `/health`, `/ready` and `/metrics` "
        "independently of client traffic. It requires no key: bind it to a private address, such "
        "as `127.0.0.1:9090`. Empty: none.",
    )
    engine_stall_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="`/ready` returns 503 when the engine has work but makes no progress for this long.",
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="OpenTelemetry collector that receives traces as OTLP over HTTP, such as "
        "`http://localhost:4318`. Empty: none.",
    )
