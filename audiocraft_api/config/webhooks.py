"""Settings of webhooks, and the key that they are signed with."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from audiocraft_api.config.section import Section

MIN_WEBHOOK_KEY_BYTES = 24  # as Standard Webhooks asks


def webhook_key(secret: SecretStr) -> bytes:
    """Return the key in a secret of Standard Webhooks, `whsec_` and base64; none in an empty one. Raises ValueError."""
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if text and len(key) < MIN_WEBHOOK_KEY_BYTES:
        raise ValueError(f"`whsec_` and the base64 of at least {MIN_WEBHOOK_KEY_BYTES} bytes was expected")
    return key


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    webhook_key(secret)
    return secret


class WebhookSettings(Section):
    """Settings of webhooks, and the key that they are signed with."""

    secret: Annotated[SecretStr, AfterValidator(_check_webhook_secret)] = Field(
        SecretStr(""),
        alias="webhook_secret",
        description="Key that webhooks are signed with: `whsec_` and base64 (`openssl rand -base64 32`). Without one "
        "`webhook_url` is refused.",
    )
    allow_private: bool = Field(
        False,
        alias="webhook_allow_private",
        description="Call webhooks on private, loopback and link-local addresses too.",
    )
    attempts: int = Field(
        8,
        alias="webhook_attempts",
        ge=1,
        le=20,
        description="How often a webhook is called before it is given up; the pauses grow fourfold.",
    )
    timeout_seconds: float = Field(
        10.0, alias="webhook_timeout_seconds", gt=0, le=120, description="Longest time of one call of a webhook."
    )
    threads: int = Field(
        4, alias="webhook_threads", ge=1, le=64, description="Webhooks called at the same time, half of them of a host."
    )
