"""Settings of who may call: keys, tokens, and whether audio links need one."""

from __future__ import annotations

from pydantic import Field

from audiocraft_api.config.section import Section


class AccessSettings(Section):
    """Settings of who may call: keys, tokens, and whether audio links need one."""

    audio_requires_key: bool = Field(
        True,
        description="Where keys are configured, audio is fetched with the key that it was made with. `false` lets "
        "everybody who knows a link fetch it, as `<audio>` elements do, which send no key.",
    )
