"""Signed tokens (JWT) as credentials. This service verifies tokens of an OAuth issuer; it does not issue tokens.

A token may only use an algorithm that the settings allow and that fits the type of the key (RFC 8725, 3.1). Knows
nothing of HTTP.
"""

from __future__ import annotations

import hashlib
from typing import Any

from audiocraft_api.access.caller import Caller, scopes_of
from audiocraft_api.access.jwks import KeySet
from audiocraft_api.config.access import AccessSettings
from audiocraft_api.core.errors import Unauthorized


class TokenVerifier:
    """Verifies the tokens of one issuer. Thread-safe."""

    def __init__(self, config: AccessSettings, max_waiting: int) -> None:
        """`max_waiting` bounds the requests that wait for the issuer's keys."""
        self._config = config
        self._keys = KeySet(config, max_waiting)

    def start(self) -> None:
        """Fetch the issuer's keys in the background, so that the first tokens do not wait for them."""
        self._keys.prefetch()

    def caller_of(self, token: str) -> Caller:
        """Return the caller that this token belongs to. Raises Unauthorized; Unavailable without the issuer's keys."""
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in self._config.jwt_algorithms or not key_id:
                raise Unauthorized
            key = self._keys.get(key_id, algorithm)
            if key is None:
                raise Unauthorized
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._config.jwt_audience,
                issuer=self._config.jwt_issuer,
                leeway=self._config.jwt_leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return Caller(_owner(claims["iss"], claims["sub"]), scopes_of(_scope_names(claims)))
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            raise Unauthorized from error


def _owner(issuer: str, subject: str) -> str:
    return "jwt-" + hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:40]


def _scope_names(claims: dict[str, Any]) -> list[str]:
    """Return the names in the claim `scope` (RFC 8693, 4.2) or in `scp`, which some issuers use instead."""
    given = claims.get("scope", claims.get("scp", ""))
    names = given.split() if isinstance(given, str) else given
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
