"""API keys: generated here, shown once, and stored only as a hash.

A key is `acg_<id>_<secret>`. People and logs refer to a key by its id. The secret has 256 bits, so one round of SHA-256
is enough. Keys from the environment may have other formats; their ids are derived from their hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import TypeGuard

from audiocraft_api.access.caller import Caller, CallerLimits, Scope

KEY = re.compile(r"acg_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")
ID_LETTERS = string.ascii_lowercase + string.digits  # ids are directory names, and some file systems ignore case
NO_HASH = hashlib.sha256(secrets.token_bytes(32)).hexdigest()


@dataclass(frozen=True)
class ApiKey:
    """The stored record of a key, without the key itself. Times are seconds since the epoch."""

    id: str
    hash: str = field(repr=False)
    name: str
    scopes: frozenset[Scope]
    limits: CallerLimits
    created: float
    expires: float | None = None
    revoked: float | None = None

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.scopes, self.limits)

    def is_usable(self, now: float) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def new_key(
    name: str, scopes: frozenset[Scope], limits: CallerLimits, *, created: float, expires: float | None = None
) -> tuple[str, ApiKey]:
    """Generate a key. Return the key, which must not be stored, and the record to store."""
    key_id = "".join(secrets.choice(ID_LETTERS) for _ in range(8))
    key = f"acg_{key_id}_{secrets.token_urlsafe(32)}"
    return key, ApiKey(key_id, hash_of(key), name, scopes, limits, created, expires)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def id_of(key: str) -> str:
    """Return the id contained in a key or, for keys in another format, an id derived from the hash."""
    found = KEY.fullmatch(key)
    return found[1] if found else "env-" + hash_of(key)[:16]


def matches(known: ApiKey | None, key: str) -> TypeGuard[ApiKey]:
    """Return whether `key` is the known key. Takes constant time, even if `known` is None."""
    return hmac.compare_digest(known.hash if known else NO_HASH, hash_of(key)) and known is not None
