"""Authentication by a key from the environment, a key from the key store, or a signed token. Knows nothing of HTTP.

When none of the three is configured, every caller has every scope. Keys from the environment and tokens work without
the store.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Callable

from audiocraft_api.access.api_key import KEY, ApiKey, hash_of, id_of, matches
from audiocraft_api.access.caller import ANONYMOUS, DEFAULT_SCOPES, Caller, CallerLimits, scopes_of
from audiocraft_api.access.key_cache import KeyCache
from audiocraft_api.access.key_store import KeyStore
from audiocraft_api.access.tokens import TokenVerifier
from audiocraft_api.config import Config
from audiocraft_api.config.access import AccessSettings, environment_keys
from audiocraft_api.core.errors import StorageUnavailable, Unauthorized
from audiocraft_api.core.observer import NULL_OBSERVER, Observer

CREDENTIAL = re.compile(r"[A-Za-z0-9._~+/=-]{1,8000}")  # the characters of bearer tokens (RFC 6750)
OPEN_WARNING = (
    "No API key is configured: anyone who can reach %s can use this service. Create a key with "
    "`python -m audiocraft_api keys create`, or bind to 127.0.0.1."
)

logger = logging.getLogger(__name__)


class Authenticator:
    """Finds the caller that a credential belongs to. Thread-safe."""

    def __init__(
        self,
        store: KeyStore,
        config: Config,
        clock: Callable[[], float] = time.time,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self._stored_keys = KeyCache(store, observer=observer)
        self._environment_keys = _parse_environment_keys(config.access)
        self._tokens = (
            TokenVerifier(config.access, max_waiting=config.server.threads // 4) if config.access.jwt_issuer else None
        )
        self._always_requires_key = (
            config.access.require_key or bool(self._environment_keys) or self._tokens is not None
        )
        self._bind = config.server.bind
        self._clock = clock

    def caller_of(self, credential: str | None) -> Caller:
        """Return the caller that this credential belongs to, or `ANONYMOUS` if no credential is required.

        Raises Unauthorized; Unavailable while the key store or the token issuer is unreachable.
        """
        found = self._find(credential) if credential and CREDENTIAL.fullmatch(credential) else None
        if found is None and self.requires_key():
            raise Unauthorized
        return found or ANONYMOUS

    def requires_key(self) -> bool:
        """Return whether callers need a credential.

        They do if the settings contain keys, require keys or accept tokens, or if a key was ever created. Raises
        StorageUnavailable when that cannot be determined.
        """
        return self._always_requires_key or self._stored_keys.any_key_created()

    def start(self) -> None:
        """Prefetch the keys that verify tokens; warn if the service is reachable from other hosts without a key."""
        if self._tokens:
            self._tokens.start()
        try:
            if not self.requires_key() and not _is_local(self._bind):
                logger.warning(OPEN_WARNING, self._bind)
        except StorageUnavailable as error:
            logger.error(
                "Cannot determine whether API keys exist. Requests are refused until the key store is available: %s",
                error,
            )

    def _find(self, credential: str) -> Caller | None:
        key_id = id_of(credential)
        key = self._environment_keys.get(key_id)
        if matches(key, credential):
            return key.caller
        if self._tokens and credential.count(".") == 2:
            return self._tokens.caller_of(credential)
        if KEY.fullmatch(credential):
            key = self._stored_keys.get(key_id)
            if matches(key, credential) and key.is_usable(self._clock()):
                return key.caller
        return None


def _parse_environment_keys(config: AccessSettings) -> dict[str, ApiKey]:
    keys = {}
    for name, scopes, key in environment_keys(config.keys):
        key_id = id_of(key)
        known = scopes_of(scopes.split("+")) if scopes else DEFAULT_SCOPES
        keys[key_id] = ApiKey(key_id, hash_of(key), name or key_id, known, CallerLimits(), created=0.0)
    return keys


def _is_local(bind: str) -> bool:
    host = bind.rpartition(":")[0].strip("[]")
    if host in ("localhost", "unix") or bind.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
