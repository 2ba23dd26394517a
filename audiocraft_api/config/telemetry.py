"""Settings of what the operator sees: metrics, the admin listener, traces."""

from __future__ import annotations

from audiocraft_api.config.section import Section


class TelemetrySettings(Section):
    """Settings of what the operator sees: metrics, the admin listener, traces."""
