"""Who asks: what a request knows of its caller once its key has been looked at. Knows no key and no store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Scope = Literal["read", "generate", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "generate", "admin")
DEFAULT_SCOPES: frozenset[Scope] = frozenset({"read", "generate"})  # of a key that is not given others


@dataclass(frozen=True)
class CallerLimits:
    """What a caller may have, where that differs from the settings; None is what the settings say, 0 no limit."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    audio_seconds_per_day: int | None = None
    concurrent_requests: int | None = None
    concurrent_tasks: int | None = None


@dataclass(frozen=True)
class Caller:
    """One who may call. `owner` is whose tasks and audio it sees: a key's id, None where no keys are configured."""

    owner: str | None
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: CallerLimits = field(default_factory=CallerLimits)


ANONYMOUS = Caller(None)
UNAUTHENTICATED = Caller(None, frozenset())


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes among some names."""
    given = set(names)
    return frozenset(scope for scope in SCOPES if scope in given)
