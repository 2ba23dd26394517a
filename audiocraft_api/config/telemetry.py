"""Settings of what the operator sees: metrics, the admin listener, traces."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class TelemetrySettings(Section):
    """Settings of what the operator sees: metrics, the admin listener, traces."""

    admin_bind: str = Field(
        "",
        pattern=r"^(.+:\d+)?$",
        description="Address and port of `/health`, `/ready` and `/metrics` beside the public ones, answered whatever "
        "the clients do. It asks for no key: choose a private address, as `127.0.0.1:9090`. Empty is none.",
    )
    engine_stall_seconds: float = Field(
        60.0, gt=0, le=3600, description="`/ready` fails when the engine has work and makes no step for so long."
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="OpenTelemetry collector that traces are sent to, as OTLP over HTTP (`http://localhost:4318`). "
        "Empty is none.",
    )
