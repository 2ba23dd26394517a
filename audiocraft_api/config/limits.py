"""Settings of how much a caller may ask for: bursts, quotas, tasks at a time."""

from __future__ import annotations

from audiocraft_api.config.section import Section


class LimitSettings(Section):
    """Settings of how much a caller may ask for: bursts, quotas, tasks at a time."""
