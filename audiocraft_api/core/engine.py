"""The interface that every engine fills. The service knows engines only through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest

# Bounds of the histogram of rows: a batch has at most 256 requests of two rows.
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class DecodeCounts:
    """What a decode loop has done since the process began."""

    steps_by_rows: tuple[int, ...] = (0,) * (len(BATCH_ROWS) + 1)  # under each bound of `BATCH_ROWS`, and over the last
    num_rows: int = 0  # of all steps together
    seconds: float = 0.0


@dataclass(frozen=True)
class ModelStatus:
    """What an engine does with one model."""

    model: str
    is_loading: bool = False  # or being prepared, for requests that wait for it
    stalled_seconds: float = 0.0  # since the last pass of a loop that has something to decode; else 0
    counts: DecodeCounts = DecodeCounts()
    kv_cache_bytes: int = 0
    kv_cache_used_bytes: int = 0  # that running requests hold


@dataclass(frozen=True)
class EngineStatus:
    """How many requests an engine holds, and what it does; never waits on the model."""

    num_waiting: int
    num_running: int
    is_alive: bool = (
        True  # False when its thread has died; before the first request there is none yet, and that is fine
    )
    models: tuple[ModelStatus, ...] = ()


class Engine(Protocol):
    """Turns parameters into waveforms, in threads of its own that start with the first request."""

    def import_libraries(self) -> None:
        """Import what the first generation needs (torch, transformers, audiocraft). Takes seconds.

        Optional: the first request does it otherwise, and a request that comes meanwhile waits in the engine's thread.
        Raises ModelUnavailable when a library is missing or broken.
        """

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Take a request (`deadline` is a `time.monotonic()` value) and return at once.

        Raises QueueFull when the waiting room is full and ShuttingDown after `close`. Everything later, a model
        that does not load included, ends the returned request.
        """

    def status(self) -> EngineStatus: ...

    def close(self, grace_seconds: float = 0.0) -> None:
        """Take no more work, let what runs go on for `grace_seconds`, then end every request with ShuttingDown."""
