"""Signed tokens (JWT) as credentials: this service checks what an OAuth issuer has signed, and issues none.

The algorithm comes from the settings' list and fits the type of the key (RFC 8725, 3.1): what a token says of itself
only chooses among these. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
from typing import Any

from audiocraft_api.access.caller import Caller, scopes_of
from audiocraft_api.access.jwks import KeySet
from audiocraft_api.config import Config
from audiocraft_api.core.errors import Unauthorized


class TokenVerifier:
    """Takes the tokens of one issuer. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._keys = KeySet(config)

    def start(self) -> None:
        """Fetch the issuer's keys in the background, so that the first tokens need not wait for them."""
        self._keys.prefetch()

    def caller_of(self, token: str) -> Caller:
        """Return whom a token stands for. Raises Unauthorized, Unavailable when that cannot be told now."""
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in self._config.access.jwt_algorithms or not key_id:
                raise Unauthorized
            key = self._keys.get(key_id, algorithm)
            if key is None:
                raise Unauthorized
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._config.access.jwt_audience,
                issuer=self._config.access.jwt_issuer,
                leeway=self._config.access.jwt_leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return Caller(_owner(claims["iss"], claims["sub"]), scopes_of(_scope_names(claims)))
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            raise Unauthorized from error


def _owner(issuer: str, subject: str) -> str:
    return "jwt-" + hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:40]


def _scope_names(claims: dict[str, Any]) -> list[str]:
    """Return what `scope` says (RFC 8693, 4.2), or `scp`, as some issuers call it."""
    given = claims.get("scope", claims.get("scp", ""))
    names = given.split() if isinstance(given, str) else given
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
