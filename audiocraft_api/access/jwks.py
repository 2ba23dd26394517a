"""The public keys that an issuer of tokens publishes (RFC 7517): fetched, kept for a while, fetched again when needed.

A thread of its own fetches, at most every few seconds. Requests go on with the keys that are known; only one whose key
is unknown waits, for a bounded time and in bounded number. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from audiocraft_api.config import Config, ConfigError, variable_name
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.net.outbound import ForbiddenTarget, Target, connected, parse_target

if TYPE_CHECKING:
    from jwt import PyJWK

MAX_BYTES = 256 * 2**10
FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # the type of key that an algorithm is for

logger = logging.getLogger(__name__)


class KeySet:
    """An issuer's keys for verifying. Thread-safe."""

    def __init__(self, config: Config) -> None:
        """Take the settings; nothing is fetched. Raises ConfigError."""
        try:
            self._target = parse_target(config.access.jwt_jwks_url, allow_private=True)
        except ForbiddenTarget as error:
            raise ConfigError(f"{variable_name('jwt_jwks_url')} {error}") from None
        self._config = config
        self._condition = threading.Condition()
        self._keys: dict[tuple[str, str], PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._is_fetching = False
        self._has_failed = False
        self._num_waiting = 0
        self._max_waiting = config.server.threads // 4  # unknown keys must not hold all threads

    def prefetch(self) -> None:
        with self._condition:
            self._begin_fetch()

    def get(self, key_id: str, algorithm: str) -> PyJWK | None:
        """Return a key for an algorithm that the settings allow; None for one that the issuer does not have.

        Raises Unavailable when that cannot be told now.
        """
        wanted = key_id, algorithm
        with self._condition:
            if self._is_older_than(
                max(self._config.access.jwt_jwks_lifetime_seconds, self._config.access.jwt_jwks_outage_seconds)
            ):
                self._keys = {}  # nobody has asked for long, or they cannot be fetched: they may be withdrawn by now
            if wanted not in self._keys or self._is_older_than(self._config.access.jwt_jwks_lifetime_seconds):
                self._begin_fetch()
            if wanted not in self._keys and self._is_fetching and self._num_waiting < self._max_waiting:
                self._num_waiting += 1
                self._condition.wait_for(lambda: not self._is_fetching, self._config.access.jwt_jwks_timeout_seconds)
                self._num_waiting -= 1
            if wanted not in self._keys and (self._has_failed or self._is_fetching or not self._keys):
                raise Unavailable("The keys of the tokens' issuer cannot be fetched now; try again later.")
            return self._keys.get(wanted)

    def _is_older_than(self, seconds: float) -> bool:
        return self._fetched_at is None or time.monotonic() - self._fetched_at > seconds

    def _begin_fetch(self) -> None:
        now = time.monotonic()
        if self._is_fetching or (
            self._tried_at is not None and now - self._tried_at < self._config.access.jwt_jwks_refetch_seconds
        ):
            return
        self._tried_at = now
        threading.Thread(target=self._fetch, name="jwks", daemon=True).start()
        self._is_fetching = True  # not when no thread is to be had; it waits for our lock before it says that it ended

    def _fetch(self) -> None:
        keys = None
        try:
            keys = self._keys_of(_download(self._target, self._config.access.jwt_jwks_timeout_seconds))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            logger.error("The keys of the tokens' issuer cannot be fetched: %s", error)
        finally:
            with self._condition:
                self._is_fetching, self._has_failed = False, keys is None
                if keys is not None:
                    self._keys, self._fetched_at = keys, time.monotonic()
                self._condition.notify_all()

    def _keys_of(self, document: bytes) -> dict[tuple[str, str], PyJWK]:
        """Return the keys of a document that can be used. Raises ValueError for what is no JWKS."""
        from jwt import PyJWK
        from jwt.exceptions import PyJWTError

        found = json.loads(document)
        if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
            raise ValueError("it is no JSON Web Key Set")
        keys: dict[tuple[str, str], PyJWK] = {}
        for entry in found["keys"]:
            for algorithm in self._config.access.jwt_algorithms:
                if _is_for(entry, algorithm):
                    try:
                        keys[entry["kid"], algorithm] = PyJWK(entry, algorithm=algorithm)
                    except (PyJWTError, TypeError, ValueError) as error:  # a curve that the algorithm is not for, say
                        logger.debug("A key is left out: %s", error)
        return keys


def _is_for(entry: Any, algorithm: str) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("kid"), str)
        and entry.get("kty") == FAMILIES[algorithm[:2]]
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", algorithm) == algorithm
    )


def _download(target: Target, timeout_seconds: float) -> bytes:
    """Return what is there. Raises OSError, HTTPException, ValueError for what is no document or too large."""
    with connected(target, target.host, timeout_seconds) as client:
        client.request("GET", target.path, headers={"Accept": "application/json"})
        with client.getresponse() as response:
            body = response.read(MAX_BYTES + 1)
    if response.status != 200:
        raise ValueError(f"the answer is {response.status}")
    if len(body) > MAX_BYTES:
        raise ValueError(f"it is over {MAX_BYTES} bytes")
    return body
