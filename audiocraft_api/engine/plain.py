"""The plain engine: audiocraft's own loop, one request at a time. The reference twin of the batching engine.

Owns one thread, which starts with the first request, and a bounded waiting room. Knows nothing of audiocraft.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import numpy as np

from audiocraft_api.config import Config
from audiocraft_api.core.engine import EngineStatus
from audiocraft_api.core.errors import AudioCraftError, GenerationFailed, OutOfMemory, QueueFull, ShuttingDown
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.loop_stats import LoopStats
from audiocraft_api.model.loading import import_libraries
from audiocraft_api.model.model_cache import ModelCache

logger = logging.getLogger(__name__)

_FIRST_GUESS_SECONDS = 5.0  # of a generation, until one was measured
_ROWS = 2  # of a request: audiocraft runs the null row whether it is needed or not
_JOIN_SECONDS = 10.0  # how long `close` waits for a step, or for a model that is just loading


class PlainEngine:
    """Fills `engine.base.Engine`."""

    def __init__(self, cache: ModelCache, config: Config) -> None:
        self._cache = cache
        self._max_waiting = config.engine.max_waiting
        self._condition = threading.Condition()
        self._waiting: deque[EngineRequest] = deque()
        self._running: EngineRequest | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._mean_seconds = _FIRST_GUESS_SECONDS
        self._meters: dict[str, LoopStats] = {}  # by model; written by the thread alone

    def import_libraries(self) -> None:
        """See `Engine.import_libraries`."""
        import_libraries()

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Take a request and return at once. Raises QueueFull and ShuttingDown."""
        request = EngineRequest(params, deadline)
        self._drop_ended()
        with self._condition:
            if self._is_closed:
                raise ShuttingDown
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull(
                    "Too many requests are waiting; try again later.",
                    retry_after_seconds=max(1.0, self._mean_seconds),
                )
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="plain-engine", daemon=True)
                self._thread.start()
            self._condition.notify_all()
        return request

    def status(self) -> EngineStatus:
        with self._condition:
            return EngineStatus(
                num_waiting=len(self._waiting),
                num_running=int(self._running is not None),
                is_alive=self._thread is None or self._thread.is_alive(),
                models=tuple(meter.status(name) for name, meter in self._meters.items()),
            )

    def close(self, grace_seconds: float = 0.0) -> None:
        """Take no more work, let what was taken go on for `grace_seconds`, then end the rest with ShuttingDown."""
        error = ShuttingDown()
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._waiting and self._running is None, grace_seconds)
            rest = list(self._waiting)
            self._waiting.clear()
            running = self._running
        for request in rest:
            request.fail(error)
        if running is not None:
            running.fail(error)
            running.cancel()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                self._running = request = self._waiting.popleft()
                self._meters.setdefault(request.params.model, LoopStats())
            try:
                self._serve(request)
            finally:
                with self._condition:
                    self._meters[request.params.model].rest()
                    self._running = None
                    self._condition.notify_all()

    def _serve(self, request: EngineRequest) -> None:
        """End a request, whatever happens to it; the next one is not touched by it."""
        begin = time.monotonic()
        try:
            request.raise_if_stopped()
            self._generate(request)
        except AudioCraftError as error:
            request.fail(error)
            return
        except Exception as error:  # noqa: BLE001 - the engine's loop: whatever happened, the caller is told
            request.fail(_told(error, request))
            return
        self._mean_seconds += 0.3 * (time.monotonic() - begin - self._mean_seconds)

    def _generate(self, request: EngineRequest) -> None:
        params, meter = request.params, self._meters[request.params.model]
        begun = 0.0

        def on_step(num_frames_done: int, _num_frames_total: int) -> None:
            nonlocal begun
            meter.add(_ROWS, 1, time.monotonic() - begun)
            meter.begin_pass()
            begun = time.monotonic()
            request.raise_if_stopped()
            self._drop_ended()
            request.advance(num_frames_done)

        with self._cache.lease(params.model) as model:
            request.raise_if_stopped()
            request.start(
                model.num_frames(params.duration_seconds),
                sample_rate=model.sample_rate,
                frame_rate=model.frame_rate,
                revision=model.revision,
                precision="fp16" if model.device.type == "cuda" else "exact",
            )
            meter.begin_pass()
            begun = time.monotonic()
            codes = model.generate_codes(params, on_step)
            waveform = model.decode_codes(codes).numpy()
            request.raise_if_stopped()
            if not np.isfinite(waveform).all():
                raise GenerationFailed("The model made no usable sound; try another seed or temperature.")
            request.push(waveform)
            request.finish()

    def _drop_ended(self) -> None:
        """Let canceled and late requests leave the waiting room, so that they keep nobody out."""
        with self._condition:
            dropped = [request for request in self._waiting if request.should_stop]
            for request in dropped:
                self._waiting.remove(request)
        for request in dropped:
            try:
                request.raise_if_stopped()
            except AudioCraftError as error:
                request.fail(error)


def _told(error: Exception, request: EngineRequest) -> AudioCraftError:
    """Log a cause once, and return what the caller is told of it."""
    # torch.OutOfMemoryError, and the plain RuntimeError of torch's allocator on the CPU; torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        logger.exception("Out of memory in a generation of %s.", request.params.model)
        return OutOfMemory("There was not enough memory for this generation; ask for less audio or try again later.")
    logger.exception("A generation of %s failed.", request.params.model)
    return GenerationFailed("The generation failed.")
