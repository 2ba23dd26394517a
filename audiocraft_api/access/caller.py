"""The authenticated caller of a request, with scopes and limits. Knows no key and no store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Scope = Literal["read", "generate", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "generate", "admin")
DEFAULT_SCOPES: frozenset[Scope] = frozenset({"read", "generate"})  # of a key created without scopes


@dataclass(frozen=True)
class CallerLimits:
    """Limits of one caller that override the settings. None: as in the settings; 0: no limit."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    audio_seconds_per_day: int | None = None
    concurrent_requests: int | None = None
    concurrent_tasks: int | None = None


@dataclass(frozen=True)
class Caller:
    """A caller. It sees the tasks and audio of `owner`: the id of its key, or None when no keys are configured."""

    owner: str | None
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: CallerLimits = field(default_factory=CallerLimits)


ANONYMOUS = Caller(None)
UNAUTHENTICATED = Caller(None, frozenset())


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Return the names that are scopes."""
    given = set(names)
    return frozenset(scope for scope in SCOPES if scope in given)
