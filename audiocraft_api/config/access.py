"""Settings: API keys, JSON Web Tokens (JWT), and whether audio links need a key."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from audiocraft_api.config.section import Section, split_commas

SCOPE = "(?:read|generate|admin)"
ENVIRONMENT_KEY = re.compile(
    r"(?:(?P<name>[A-Za-z0-9._-]{1,64}):"
    rf"(?:(?P<scopes>{SCOPE}(?:\+{SCOPE})*):)?)?"
    r"(?P<key>acg_[a-z0-9]{8}_[A-Za-z0-9_-]{43}|(?!acg_)[A-Za-z0-9_-]{32,128})"
)
ID_LENGTH = len("acg_") + 8

# Only public-key algorithms: with a shared secret, this service could also issue tokens.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip


def environment_keys(secret: SecretStr) -> list[tuple[str, str, str]]:
    """Parse `AUDIOCRAFT_API_KEYS` into (name, scopes, key); name and scopes may be empty. Raises ValueError."""
    text = secret.get_secret_value()
    items = split_commas(text)
    found = [match for item in items if (match := ENVIRONMENT_KEY.fullmatch(item))]
    # A value such as `$A,$B` with unset variables contains no items; it must not disable authentication.
    if len(found) < len(items) or (text and not items):
        raise ValueError(
            "expected comma-separated keys, each `KEY`, `NAME:KEY` or `NAME:SCOPE+SCOPE:KEY`. Create a key with "
            "`python -m audiocraft_api keys create`, or use 32 to 128 letters, digits, `-` and `_`, such as "
            "the output of `openssl rand -hex 32`"
        )
    keys = [match["key"] for match in found]
    if len({key[:ID_LENGTH] if key.startswith("acg_") else key for key in keys}) < len(keys):
        raise ValueError("expected keys with different ids")
    return [(match["name"] or "", match["scopes"] or "", match["key"]) for match in found]


def _check_keys(secret: SecretStr) -> SecretStr:
    environment_keys(secret)
    return secret


class AccessSettings(Section):
    """API keys, JSON Web Tokens (JWT), and whether audio links need a key."""

    keys: Annotated[SecretStr, AfterValidator(_check_keys)] = Field(
        SecretStr(""),
        description="Comma-separated API keys, for deployments without keys in the state store. Each is `KEY`, "
        "`NAME:KEY` or `NAME:SCOPE+SCOPE:KEY`, with the scopes `generate`, `read` and `admin`; the "
        "default is `generate+read`.",
    )
    require_key: bool = Field(
        False,
        description="Require a key even when none is configured, so that losing the state store does not open "
        "the service to everyone.",
    )
    max_keys: int = Field(10_000, ge=1, le=1_000_000, description="Maximum number of usable keys in the state store.")
    audio_requires_key: bool = Field(
        True,
        description="When keys are configured, require the key that created an audio file to download it. With "
        "`false` anyone who knows the link can, including `<audio>` elements, which cannot send a "
        "key.",
    )
    jwt_issuer: str = Field(
        "",
        description="Issuer (`iss`) whose tokens (JWT) are accepted in place of keys. Empty: tokens are not accepted.",
    )
    jwt_audience: str = Field("", description="Audience (`aud`) that tokens must name.")
    jwt_algorithms: Annotated[tuple[Algorithm, ...], BeforeValidator(split_commas)] = Field(
        ("RS256", "ES256"), min_length=1, description="Comma-separated list of accepted signature algorithms."
    )
    jwt_leeway_seconds: float = Field(
        10.0, ge=0, le=300, description="Tolerated difference between the clocks of the issuer and the server."
    )
    jwt_jwks_lifetime_seconds: float = Field(
        300.0, ge=1, le=86_400, description="How long the issuer's public keys are used before they are fetched again."
    )
    jwt_jwks_outage_seconds: float = Field(
        86_400.0,
        ge=0,
        le=2_592_000,
        description="How long fetched keys stay in use while they cannot be fetched again.",
    )
    jwt_jwks_refetch_seconds: float = Field(
        10.0, ge=0.1, le=3600, description="Minimum time between two fetches, even if tokens name unknown keys."
    )
    jwt_jwks_timeout_seconds: float = Field(5.0, gt=0, le=60, description="Maximum time for one fetch.")
    jwt_jwks_url: str = Field(
        "",
        pattern=r"^(https?://[^\s/?#@]+(/[\x21-\x7e]*)?)?$",
        validate_default=True,
        description="Address of the issuer's public keys (JWKS). Use `https`. Redirects are not followed.",
    )

    @field_validator("jwt_jwks_url")
    @classmethod
    def _check_tokens(cls, url: str, info: ValidationInfo) -> str:
        given = [info.data.get("jwt_issuer"), info.data.get("jwt_audience"), url]
        if any(given) and not all(given):
            raise ValueError("jwt_issuer, jwt_audience and jwt_jwks_url must be set together")
        return url
