"""The interface of the engines. Every other package uses engines only through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest

# Bucket bounds of the histogram of rows per step: a batch has at most 256 requests with two rows each.
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class DecodeCounts:
    """What a decode loop has done since the process started."""

    steps_by_rows: tuple[int, ...] = (0,) * (
        len(BATCH_ROWS) + 1
    )  # one count per bound of `BATCH_ROWS`, then those above the last
    num_rows: int = 0  # summed over all steps
    seconds: float = 0.0


@dataclass(frozen=True)
class ModelStatus:
    """The state of one model in an engine."""

    model: str
    is_loading: bool = False  # or being prepared; requests are waiting for it
    stalled_seconds: float = 0.0  # since the loop's last pass; 0 while it has nothing to decode
    counts: DecodeCounts = DecodeCounts()
    kv_cache_bytes: int = 0
    kv_cache_used_bytes: int = 0  # by running requests


@dataclass(frozen=True)
class EngineStatus:
    """How many requests an engine has, and the state of its models."""

    num_waiting: int
    num_running: int
    is_alive: bool = True  # False when its thread has died; True before the first request, which starts the thread
    models: tuple[ModelStatus, ...] = ()
    cpu_kernels: str | None = None  # such as `avx2`, or `pytorch`; None while unknown, and on other devices


@dataclass(frozen=True)
class QueuePlace:
    """Where a request waits, and how long it will take."""

    position: int  # among the requests that wait for a slot, from 1
    eta_seconds: float | None  # until the request is finished; None if unknown


class Engine(Protocol):
    """Turns parameters into waveforms, in its own threads, which start with the first request."""

    def import_libraries(self) -> None:
        """Import what the first generation needs (torch, transformers, audiocraft). Takes seconds.

        Optional: otherwise the first request does it. A request that arrives during the import waits in the engine's
        thread. Raises ModelUnavailable when a library is missing or broken.
        """

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Queue a request and return immediately. `deadline` is a `time.monotonic()` value.

        Raises QueueFull when the queue is full and ShuttingDown after `close`. Any later error, such as a model that
        cannot be loaded, ends the returned request.
        """

    def submit_live(self, request: LiveRequest) -> None:
        """Queue a generation that is steered while it runs. Raises as `submit`, and NotStreamable if it cannot."""

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:
        """Return where a submitted request waits; None once it has begun, and while it waits only for its model."""

    def status(self) -> EngineStatus:
        """Return the engine's state. Never waits for a model."""

    def close(self, grace_seconds: float = 0.0) -> None:
        """Accept no more requests, let accepted ones run for `grace_seconds`, then end the rest with ShuttingDown."""
