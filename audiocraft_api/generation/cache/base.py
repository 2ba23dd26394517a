"""The interface of the stores that remember results and keep the leases on results in progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class CachedResult:
    """A file in the audio store that belongs to the cache, and its recipe."""

    filename: str
    recipe: Mapping[str, Any]  # `Recipe.to_dict`


class ResultStore(Protocol):
    """Remembers a bounded number of results, each for a bounded time. Every method raises StorageUnavailable.

    Several processes may share a store. The caller deletes the files of results that the store drops.
    """

    def get(self, key: str) -> CachedResult | None:
        """Return the result unless it is too old, and mark it as used now."""

    def put(self, key: str, result: CachedResult) -> list[str]:
        """Remember a result. Returns the files of dropped results: replaced, too old or least recently used."""

    def delete(self, key: str, filename: str) -> None:
        """Forget a result, unless a result with another file has replaced it."""

    def lease(self, key: str, holder: str, seconds: float) -> bool:
        """Lease a key to `holder` for `seconds` from now; False while another holder has it. A repeat renews it."""

    def release(self, key: str, holder: str) -> None:
        """End the lease if `holder` has it."""
