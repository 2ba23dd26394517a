"""The interface of the stores that remember results, and of the leases on those that are just being made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class CachedResult:
    """Audio that answers a question: a file of its own in the audio store, and what is said of it."""

    filename: str
    answer: Mapping[str, Any]  # `Recipe.answer`


class ResultStore(Protocol):
    """Remembers results by key, a bounded number for a bounded time. All methods raise StorageUnavailable.

    Several processes may share one. Whoever is told a filename to let go deletes the file.
    """

    def find(self, key: str) -> CachedResult | None:
        """Return a result that is not too old, and count it as used just now."""

    def keep(self, key: str, result: CachedResult) -> list[str]:
        """Remember a result; return the files of what had to go: what it replaces, what is too old or unused longest."""

    def forget(self, key: str, filename: str) -> None:
        """Forget a result, unless another file has taken its place."""

    def lease(self, key: str, holder: str, seconds: float) -> bool:
        """Let `holder` work on a result for so long, from now, unless somebody else does. Renewed by asking again."""

    def release(self, key: str, holder: str) -> None:
        """End a holder's lease."""
