"""How far the load of a model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LoadPhase = Literal["waiting", "downloading", "reading", "preparing"]


@dataclass(frozen=True)
class LoadProgress:
    """What a load does now. The bytes are those of one repository; the total may grow while its files are listed."""

    phase: LoadPhase
    repository: str | None = None  # that is being downloaded
    downloaded_bytes: int | None = None
    total_bytes: int | None = None


ReportProgress = Callable[[LoadProgress], None]


def ignore(_progress: LoadProgress) -> None:
    """Report nothing."""
