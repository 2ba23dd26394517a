"""Settings of how much a caller may ask for: bursts, quotas, tasks at a time."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class LimitSettings(Section):
    """Settings of how much a caller may ask for: bursts, quotas, tasks at a time."""

    concurrent_tasks: int = Field(
        0, ge=0, description="Tasks of one key that wait or run at a time; over it the answer is 429. 0 is no limit."
    )
