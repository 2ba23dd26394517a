"""Settings of who may call: keys, tokens, and whether audio links need one."""

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

# Of public keys alone: with a shared secret whoever checks tokens could make them.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip


def environment_keys(secret: SecretStr) -> list[tuple[str, str, str]]:
    """Return name, scopes and key of each key in `AUDIOCRAFT_API_KEYS`; name and scopes may be empty. Raises ValueError."""
    text = secret.get_secret_value()
    items = split_commas(text)
    found = [match for item in items if (match := ENVIRONMENT_KEY.fullmatch(item))]
    if len(found) < len(items) or (text and not items):  # `$A,$B` of unset variables must not open the service
        raise ValueError(
            "keys, separated by commas, each `KEY`, `NAME:KEY` or `NAME:SCOPE+SCOPE:KEY`, were expected; a key is one of "
            "`python -m audiocraft_api keys create`, or 32 to 128 letters, digits, `-` and `_` (`openssl rand -hex 32`)"
        )
    keys = [match["key"] for match in found]
    if len({key[:ID_LENGTH] if key.startswith("acg_") else key for key in keys}) < len(keys):
        raise ValueError("keys of different ids were expected")
    return [(match["name"] or "", match["scopes"] or "", match["key"]) for match in found]


def _check_keys(secret: SecretStr) -> SecretStr:
    environment_keys(secret)
    return secret


class AccessSettings(Section):
    """Settings of who may call: keys, tokens, and whether audio links need one."""

    keys: Annotated[SecretStr, AfterValidator(_check_keys)] = Field(
        SecretStr(""),
        description="API keys, separated by commas, for deployments that keep none in the state store: each is `KEY`, "
        "`NAME:KEY` or `NAME:SCOPE+SCOPE:KEY` (scopes `generate`, `read`, `admin`; the first two if none is named).",
    )
    require_key: bool = Field(
        False,
        description="Ask for a key even where none is configured, so that a lost state store opens nothing.",
    )
    max_keys: int = Field(10_000, ge=1, le=1_000_000, description="Keys that the state store may hold.")
    audio_requires_key: bool = Field(
        True,
        description="Where keys are configured, audio is fetched with the key that it was made with. `false` lets "
        "everybody who knows a link fetch it, as `<audio>` elements do, which send no key.",
    )
    jwt_issuer: str = Field(
        "", description="Issuer (`iss`) of signed tokens (JWT) that are taken in place of keys; empty takes none."
    )
    jwt_audience: str = Field("", description="Audience (`aud`) that a token must be for.")
    jwt_algorithms: Annotated[tuple[Algorithm, ...], BeforeValidator(split_commas)] = Field(
        ("RS256", "ES256"), min_length=1, description="Algorithms that tokens may be signed with, separated by commas."
    )
    jwt_leeway_seconds: float = Field(
        10.0, ge=0, le=300, description="How far the clocks of issuer and server may differ."
    )
    jwt_jwks_lifetime_seconds: float = Field(
        300.0, ge=1, le=86_400, description="How long the issuer's public keys are used before they are fetched again."
    )
    jwt_jwks_outage_seconds: float = Field(
        86_400.0, ge=0, le=2_592_000, description="How long they are used on while they cannot be fetched."
    )
    jwt_jwks_refetch_seconds: float = Field(
        10.0, ge=0.1, le=3600, description="Shortest time between two fetches, whatever unknown keys tokens name."
    )
    jwt_jwks_timeout_seconds: float = Field(5.0, gt=0, le=60, description="Longest time of a fetch.")
    jwt_jwks_url: str = Field(
        "",
        pattern=r"^(https?://[^\s/?#@]+(/[\x21-\x7e]*)?)?$",
        validate_default=True,
        description="Where the issuer publishes its public keys (JWKS); use `https`. Redirects are not followed.",
    )

    @field_validator("jwt_jwks_url")
    @classmethod
    def _check_tokens(cls, url: str, info: ValidationInfo) -> str:
        given = [info.data.get("jwt_issuer"), info.data.get("jwt_audience"), url]
        if any(given) and not all(given):
            raise ValueError("jwt_issuer, jwt_audience and jwt_jwks_url go together")
        return url
