"""The authenticated caller of a request, with scopes and limits. Knows nothing of keys and stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Scope = Literal["read", "generate", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "generate", "admin")
DEFAULT_SCOPES: frozenset[Scope] = frozenset({"read", "generate"})  # for a key created without scopes


@dataclass(frozen=True)
class CallerLimits:
    """Limits of one caller that override the settings. None: the setting applies; 0: no limit."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    audio_seconds_per_day: int | None = None
    concurrent_requests: int | None = None
    concurrent_tasks: int | None = None


@dataclass(frozen=True)
class Caller:
    """A caller. It can access the tasks and audio of `owner`, which is the id of its key, or None if it has no key."""

    owner: str | None
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: CallerLimits = field(default_factory=CallerLimits)


ANONYMOUS = Caller(None)
UNAUTHENTICATED = Caller(None, frozenset())


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes among `names`; ignore other names."""
    given = set(names)
    return frozenset(scope for scope in SCOPES if scope in given)
