"""The interface that every engine fills. The service knows engines only through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from audiocraft_api.engine.params import GenerationParams
from audiocraft_api.engine.request import EngineRequest


@dataclass(frozen=True)
class EngineStatus:
    """How many requests an engine holds; never waits on the model."""

    num_waiting: int
    num_running: int
    is_alive: bool = (
        True  # False when its thread has died; before the first request there is none yet, and that is fine
    )


class Engine(Protocol):
    """Turns parameters into waveforms, in threads of its own that start with the first request."""

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Take a request (`deadline` is a `time.monotonic()` value) and return at once.

        Raises QueueFull when the waiting room is full and ShuttingDown after `close`. Everything later, a model
        that does not load included, ends the returned request.
        """

    def status(self) -> EngineStatus: ...

    def close(self, grace_seconds: float = 0.0) -> None:
        """Take no more work, let what runs go on for `grace_seconds`, then end every request with ShuttingDown."""
