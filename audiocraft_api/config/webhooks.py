"""Settings: delivery of webhooks, and the key that signs them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from audiocraft_api.config.section import Section

MIN_WEBHOOK_KEY_BYTES = 24  # required by Standard Webhooks


def webhook_key(secret: SecretStr) -> bytes:
    """Decode a Standard Webhooks secret (`whsec_` and base64). An empty secret is an empty key. Raises ValueError."""
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if text and len(key) < MIN_WEBHOOK_KEY_BYTES:
        raise ValueError(f"expected `whsec_` and the base64 of at least {MIN_WEBHOOK_KEY_BYTES} bytes")
    return key


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    webhook_key(secret)
    return secret


class WebhookSettings(Section):
    """Delivery of webhooks, and the key that signs them."""

    secret: Annotated[SecretStr, AfterValidator(_check_webhook_secret)] = Field(
        SecretStr(""),
        alias="webhook_secret",
        description="Key that signs webhooks: `whsec_` followed by the output of `openssl rand -base64 32`. Without "
        "it, requests with a `webhook_url` are refused.",
    )
    allow_private: bool = Field(
        False,
        alias="webhook_allow_private",
        description="Also deliver webhooks to private, loopback and link-local addresses.",
    )
    attempts: int = Field(
        8,
        alias="webhook_attempts",
        ge=1,
        le=20,
        description="Maximum number of delivery attempts. The pause between attempts grows fourfold each time.",
    )
    timeout_seconds: float = Field(
        10.0, alias="webhook_timeout_seconds", gt=0, le=120, description="Maximum time for one delivery attempt."
    )
    threads: int = Field(
        4,
        alias="webhook_threads",
        ge=1,
        le=64,
        description="Maximum number of concurrent deliveries; at most half of them go to the same host.",
    )
