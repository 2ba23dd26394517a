"""Who a credential stands for: a key of the environment, a key of the store, or a signed token. Knows nothing of HTTP.

Where none of the three is configured everybody may do everything. Keys of the environment and tokens need no store.
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
from audiocraft_api.config.access import environment_keys
from audiocraft_api.core.errors import StorageUnavailable, Unauthorized

CREDENTIAL = re.compile(r"[A-Za-z0-9._~+/=-]{1,8000}")  # as RFC 6750 has bearer tokens
OPEN_WARNING = (
    "No API key is configured: whoever reaches %s can generate. Create one with `python -m audiocraft_api keys create`,"
    " or bind to 127.0.0.1."
)

logger = logging.getLogger(__name__)


class Authenticator:
    """Tells callers by their credentials. Thread-safe."""

    def __init__(self, store: KeyStore, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._known = KeyCache(store)
        self._environment = _keys_of_environment(config)
        self._tokens = TokenVerifier(config) if config.access.jwt_issuer else None
        self._is_guarded = config.access.require_key or bool(self._environment) or self._tokens is not None
        self._bind = config.server.bind
        self._clock = clock

    def caller_of(self, credential: str | None) -> Caller:
        """Return who sent a credential, or none. Raises Unauthorized, Unavailable when that cannot be told now."""
        found = self._find(credential) if credential and CREDENTIAL.fullmatch(credential) else None
        if found is None and self.requires_key():
            raise Unauthorized
        return found or ANONYMOUS

    def requires_key(self) -> bool:
        """Say whether a key is needed: one is in the environment or was ever created, or tokens are taken.

        Raises StorageUnavailable when that cannot be told.
        """
        return self._is_guarded or self._known.any_key_created()

    def start(self) -> None:
        """Fetch what tokens are checked with; log a warning when strangers can reach a service that asks for no key."""
        if self._tokens:
            self._tokens.start()
        try:
            if not self.requires_key() and not _is_local(self._bind):
                logger.warning(OPEN_WARNING, self._bind)
        except StorageUnavailable as error:
            logger.error("It is not known yet whether keys are configured; nobody is served until then: %s", error)

    def _find(self, credential: str) -> Caller | None:
        key_id = id_of(credential)
        key = self._environment.get(key_id)
        if matches(key, credential):
            return key.caller
        if self._tokens and credential.count(".") == 2:
            return self._tokens.caller_of(credential)
        if KEY.fullmatch(credential):
            key = self._known.get(key_id)
            if matches(key, credential) and key.is_usable(self._clock()):
                return key.caller
        return None


def _keys_of_environment(config: Config) -> dict[str, ApiKey]:
    keys = {}
    for name, scopes, key in environment_keys(config.access.keys):
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
