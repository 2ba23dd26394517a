"""Settings of what may be asked for: the prompt policy and an external moderation service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from audiocraft_api.config.section import Section


class PolicySettings(Section):
    """Settings of what may be asked for: the prompt policy and an external moderation service."""

    enabled: bool = Field(
        True,
        alias="prompt_policy",
        description="Refuse prompts (422) that the word list or the moderation service does not allow.",
    )
    word_list_file: Path | None = Field(
        None,
        alias="prompt_list_file",
        description="TOML file of words in the place of the short list that comes with the service.",
    )
    moderation_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Moderation service of your own, asked about each prompt that the list lets pass; empty is none.",
    )
    moderation_secret: SecretStr = Field(SecretStr(""), description="Bearer token that the moderation service is sent.")
    moderation_timeout_seconds: float = Field(
        2.0, gt=0, le=60, description="Longest wait for the moderation service's answer, in all."
    )
    moderation_calls: int = Field(
        8,
        ge=1,
        le=256,
        description="Prompts that the moderation service is asked about at the same time. Others wait, on half of the "
        "threads at most; over it the answer is 503.",
    )
    moderation_failure: Literal["open", "closed"] = Field(
        "closed",
        description="Where the moderation service gives no answer: `open` lets the prompt pass, `closed` answers 503.",
    )
