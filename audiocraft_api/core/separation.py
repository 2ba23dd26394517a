"""The interface of source separation: a mix becomes stems that add up to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from audiocraft_api.core.params import Waveform
from audiocraft_api.core.waiting import Waiter

STEMS = ("drums", "bass", "other", "vocals")


@dataclass(frozen=True, eq=False)
class Separation:
    """The stems [C, T] of a mix by name, and what separated them."""

    stems: Mapping[str, Waveform]
    separator: str  # `<repository>@<revision>`


class StemSeparation(Protocol):
    """Separates finished audio. Thread-safe."""

    def prepare(self, model: str, waiter: Waiter) -> None:
        """Load the separator for the audio of a model, so that a missing one is reported before any work.

        Raises ModelUnavailable, or as `Waiter.raise_if_stopped`.
        """

    def separate(
        self, waveform: Waveform, sample_rate: int, model: str, waiter: Waiter, advance: Callable[[float], None]
    ) -> Separation:
        """Separate audio [C, T] of a model; their sum is the audio. Calls `advance` with the part that is done.

        Waits while too many separations run, and stops between segments when the waiter has a reason to stop.
        Raises ModelUnavailable, OutOfMemory, GenerationFailed, or as `Waiter.raise_if_stopped`.
        """
