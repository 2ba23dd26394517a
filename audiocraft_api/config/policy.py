"""Settings: which prompts are refused: the word list and an external moderation service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from audiocraft_api.config.section import Section


class PolicySettings(Section):
    """Which prompts are refused: the word list and an external moderation service."""

    enabled: bool = Field(
        True,
        alias="prompt_policy",
        description="Refuse prompts (422) that the word list or the moderation service does not allow.",
    )
    word_list_file: Path | None = Field(
        None,
        alias="prompt_list_file",
        description="TOML file that replaces the built-in word list.",
    )
    moderation_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Address of your own moderation service, called for each prompt that passes the word list. "
        "Empty: none.",
    )
    moderation_secret: SecretStr = Field(SecretStr(""), description="Bearer token sent to the moderation service.")
    moderation_timeout_seconds: float = Field(
        2.0, gt=0, le=60, description="Maximum total time for one call of the moderation service."
    )
    moderation_calls: int = Field(
        8,
        ge=1,
        le=256,
        description="Maximum number of concurrent calls of the moderation service. Further requests wait, "
        "occupying at most half of the threads; beyond that they get 503.",
    )
    moderation_failure: Literal["open", "closed"] = Field(
        "closed",
        description="What happens when the moderation service fails: `open` accepts the prompt, `closed` returns 503.",
    )
