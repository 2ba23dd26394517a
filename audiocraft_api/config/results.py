"""Settings of the result cache: the same question gets the stored answer."""

from __future__ import annotations

from audiocraft_api.config.section import Section


class ResultSettings(Section):
    """Settings of the result cache: the same question gets the stored answer."""
