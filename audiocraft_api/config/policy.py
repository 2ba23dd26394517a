"""Settings of what may be asked for: the prompt policy and an external moderation service."""

from __future__ import annotations

from audiocraft_api.config.section import Section


class PolicySettings(Section):
    """Settings of what may be asked for: the prompt policy and an external moderation service."""
