"""The public keys of a token issuer (JWKS, RFC 7517): fetched, cached, and fetched again when they are stale.

A background thread fetches the keys, with a minimum time between fetches. Requests use cached keys. Only requests with
an unknown key wait for a fetch; their number and the time that they wait are bounded. PyJWKClient is not used because
tokens with unknown key ids could make it fetch without limit. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from audiocraft_api.config import ConfigError, variable_name
from audiocraft_api.config.access import AccessSettings
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.net.outbound import ForbiddenTarget, Target, connected, parse_target

if TYPE_CHECKING:
    from jwt import PyJWK

MAX_BYTES = 256 * 2**10
FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # key type (`kty`) by the first letters of the algorithm

logger = logging.getLogger(__name__)


class KeySet:
    """The public keys of one issuer. Thread-safe."""

    def __init__(self, config: AccessSettings, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_waiting` bounds the requests that wait for a fetch. Does not fetch yet. Raises ConfigError."""
        try:
            self._target = parse_target(config.jwt_jwks_url, allow_private=True)
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
        self._max_waiting = max_waiting
        self._clock = clock

    def prefetch(self) -> None:
        with self._condition:
            self._start_fetch()

    def get(self, key_id: str, algorithm: str) -> PyJWK | None:
        """Return the issuer's key with this id for this algorithm, or None if the issuer has no such key.

        Raises Unavailable when that cannot be determined at the moment.
        """
        wanted = key_id, algorithm
        with self._condition:
            if self._is_older_than(max(self._config.jwt_jwks_lifetime_seconds, self._config.jwt_jwks_outage_seconds)):
                self._keys = {}  # too old to trust: the issuer may have withdrawn them
            if wanted not in self._keys or self._is_older_than(self._config.jwt_jwks_lifetime_seconds):
                self._start_fetch()
            if wanted not in self._keys and self._is_fetching and self._num_waiting < self._max_waiting:
                self._num_waiting += 1
                self._condition.wait_for(lambda: not self._is_fetching, self._config.jwt_jwks_timeout_seconds)
                self._num_waiting -= 1
            if wanted not in self._keys and (self._has_failed or self._is_fetching or not self._keys):
                raise Unavailable(
                    "The public keys of the token issuer cannot be fetched at the moment. Try again later."
                )
            return self._keys.get(wanted)

    def _is_older_than(self, seconds: float) -> bool:
        return self._fetched_at is None or self._clock() - self._fetched_at > seconds

    def _start_fetch(self) -> None:
        now = self._clock()
        if self._is_fetching or (
            self._tried_at is not None and now - self._tried_at < self._config.jwt_jwks_refetch_seconds
        ):
            return
        self._tried_at = now
        threading.Thread(target=self._fetch, name="jwks", daemon=True).start()
        self._is_fetching = (
            True  # set last: starting a thread may fail. The thread cannot clear it before we release the lock
        )

    def _fetch(self) -> None:
        keys = None
        try:
            keys = self._parse_keys(_download(self._target, self._config.jwt_jwks_timeout_seconds))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            logger.error("Cannot fetch the public keys of the token issuer: %s", error)
        finally:
            with self._condition:
                self._is_fetching, self._has_failed = False, keys is None
                if keys is not None:
                    self._keys, self._fetched_at = keys, self._clock()
                self._condition.notify_all()

    def _parse_keys(self, document: bytes) -> dict[tuple[str, str], PyJWK]:
        """Return the usable keys of a JWKS document by (key id, algorithm). Raises ValueError for anything else."""
        from jwt import PyJWK
        from jwt.exceptions import PyJWTError

        found = json.loads(document)
        if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
            raise ValueError("not a JSON Web Key Set")
        keys: dict[tuple[str, str], PyJWK] = {}
        for entry in found["keys"]:
            for algorithm in self._config.jwt_algorithms:
                if _is_usable(entry, algorithm):
                    try:
                        keys[entry["kid"], algorithm] = PyJWK(entry, algorithm=algorithm)
                    except (
                        PyJWTError,
                        TypeError,
                        ValueError,
                    ) as error:  # such as a curve that does not fit the algorithm
                        logger.debug("Ignoring an unusable key of the token issuer: %s", error)
        return keys


def _is_usable(entry: Any, algorithm: str) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("kid"), str)
        and entry.get("kty") == FAMILIES[algorithm[:2]]
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", algorithm) == algorithm
    )


def _download(target: Target, timeout_seconds: float) -> bytes:
    """Return the body. Raises OSError, HTTPException; ValueError for a status other than 200 or a large body."""
    with connected(target, target.host, timeout_seconds) as client:
        client.request("GET", target.path, headers={"Accept": "application/json"})
        with client.getresponse() as response:
            body = response.read(MAX_BYTES + 1)
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    if len(body) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return body
