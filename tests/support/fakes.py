"""Fakes for the components below the HTTP layer: an engine that generates a tone immediately, and an empty cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from audiocraft_api.core.engine import EngineStatus, QueuePlace
from audiocraft_api.core.errors import AudioCraftError, NotStreamable, QueueFull, ShuttingDown
from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.params import GenerationParams, Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.model.model_cache import Residency

SAMPLE_RATE = 32_000
FRAME_RATE = 50
REVISION = "fake"
CODEC = "fa4e"


class Gate(Protocol):
    def wait(self, seconds: float, /) -> bool:
        """Wait for the gate to open; return whether it is open."""


class FakeEngine:
    """Generates a tone of the requested length, with one thread per request. Requests wait while `gate` is closed.

    The codes of the result are those of the audio that it continues, if they are given, and then random ones.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        self.capacity = 1000
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.gate: Gate = gate or self.open_gate
        self.submitted: list[EngineRequest] = []
        self.failure: BaseException | None = None  # raised instead of returning audio
        self.failing_seeds: frozenset[int] | None = None  # that `failure` is limited to
        self.is_alive = True
        self.num_imports = 0
        self.revision = REVISION
        self.codec = CODEC
        self.closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def import_libraries(self) -> None:
        """Count the call; there is nothing to import."""
        self.num_imports += 1

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        if self.closed.is_set():
            raise ShuttingDown
        if self.status().num_running >= self.capacity:
            raise QueueFull("The queue is full.", retry_after_seconds=7.0)
        request = EngineRequest(params, deadline)
        self.submitted.append(request)
        thread = threading.Thread(target=self._run, args=(request,), daemon=True)
        thread.start()
        self._threads.append(thread)
        return request

    def submit_live(self, request: LiveRequest) -> None:  # noqa: ARG002
        raise NotStreamable("This engine cannot play live.")

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:  # noqa: ARG002
        return None

    def status(self) -> EngineStatus:
        running = sum(thread.is_alive() for thread in self._threads)
        return EngineStatus(num_waiting=0, num_running=running, is_alive=self.is_alive, cpu_kernels="avx2")

    def close(self, grace_seconds: float = 0.0) -> None:
        self.closed.set()
        until = time.monotonic() + grace_seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        for request in self.submitted:
            request.fail(ShuttingDown())

    def _run(self, request: EngineRequest) -> None:
        num_frames = round(request.params.duration_seconds * FRAME_RATE)
        request.start(
            num_frames,
            sample_rate=SAMPLE_RATE,
            frame_rate=FRAME_RATE,
            revision=self.revision,
            precision="exact",
            codec=self.codec,
        )
        if request.has_ended:  # the engine was closed in between
            return
        try:
            while not self.gate.wait(0.01):
                request.raise_if_stopped()
            if self.failure is not None and (self.failing_seeds is None or request.params.seed in self.failing_seeds):
                raise self.failure
        except AudioCraftError as error:
            request.fail(error)
            return
        request.advance(num_frames)
        request.add_codes(self._codes(request.params, num_frames))
        request.push(self._audio(request, num_frames * SAMPLE_RATE // FRAME_RATE))
        request.finish()

    def _audio(self, request: EngineRequest, num_samples: int) -> Waveform:  # noqa: ARG002
        tone = 0.1 * np.sin(np.arange(num_samples, dtype=np.float32) * (2 * np.pi * 440 / SAMPLE_RATE))
        return tone[None].astype(np.float32)

    def _codes(self, params: GenerationParams, num_frames: int) -> npt.NDArray[np.uint16]:
        codes = np.random.default_rng(params.seed).integers(0, 2048, (4, num_frames), np.uint16)
        given = params.audio_prompt.codes if params.audio_prompt else None
        if given is not None and given.codec == self.codec:
            codes[:, : given.tokens.shape[1]] = given.tokens
        return codes


class ShortEngine(FakeEngine):
    """Always generates one second of audio, whatever the requested duration, so that fuzzing covers more requests."""

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        return super().submit(replace(params, duration_seconds=1.0), deadline=deadline)


class FakeCache:
    """An empty model cache."""

    device = "cpu"

    def on_unload(self, _listener: Callable[[str], None]) -> None:
        """Nothing is ever unloaded."""

    def loaded_names(self) -> list[str]:
        return []

    def revision(self, _name: str) -> None:
        return None

    def known_revision(self, _name: str) -> str:
        return REVISION

    def states(self) -> dict[str, str]:
        return {}

    def residency(self, _name: str) -> Residency:
        return Residency()

    def unload(self, name: str, *, wait: bool) -> None:
        """Do nothing: nothing is loaded."""

    def keep(self, name: str) -> None:
        """Do nothing: nothing is loaded."""

    def memory(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def block(first_frame: int, last_frame: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the samples [2, t] of the tone between two frames."""
    step = SAMPLE_RATE // FRAME_RATE
    time = np.arange(first_frame * step, last_frame * step) / SAMPLE_RATE
    return np.stack([0.3 * np.sin(2 * np.pi * 440 * time), 0.2 * np.sin(2 * np.pi * 660 * time)]).astype(np.float32)
