"""The plain engine: audiocraft's own loop, one request at a time. The batching engine is tested against it.

Owns one thread, which starts with the first request, and a bounded queue. Does not import audiocraft.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.engine import EngineStatus, QueuePlace
from audiocraft_api.core.errors import AudioCraftError, GenerationFailed, NotStreamable, QueueFull, ShuttingDown
from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.params import GenerationParams, Waveform
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.loop_stats import LoopStats
from audiocraft_api.model.loading import import_libraries
from audiocraft_api.model.model_cache import ModelCache

if TYPE_CHECKING:
    from torch import Tensor

    from audiocraft_api.model.audiocraft_adapter import LoadedModel

INITIAL_MEAN_SECONDS = 5.0  # assumed duration of a generation until one has been measured
ROWS_PER_REQUEST = 2  # audiocraft always computes the unconditional row, needed or not
JOIN_SECONDS = 10.0  # how long `close` waits for a step, or for a model that is being loaded


class PlainEngine:
    """Implements `core.engine.Engine`."""

    def __init__(self, cache: ModelCache, config: EngineSettings) -> None:
        self._cache = cache
        self._max_waiting = config.max_waiting
        self._condition = threading.Condition()
        self._waiting: deque[EngineRequest] = deque()
        self._running: EngineRequest | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._mean_seconds = INITIAL_MEAN_SECONDS
        self._stats: dict[str, LoopStats] = {}  # by model; written by the engine's thread only

    def import_libraries(self) -> None:
        """See `Engine.import_libraries`."""
        import_libraries()

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Queue a request and return immediately. Raises QueueFull and ShuttingDown."""
        request = EngineRequest(params, deadline)
        self._remove_stopped()
        with self._condition:
            if self._is_closed:
                raise ShuttingDown
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull(
                    "Too many requests are waiting. Try again later.", retry_after_seconds=max(1.0, self._mean_seconds)
                )
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="plain-engine", daemon=True)
                self._thread.start()
            self._condition.notify_all()
        return request

    def submit_live(self, request: LiveRequest) -> None:  # noqa: ARG002
        """Raise NotStreamable: audiocraft's loop decodes all tokens before the codec makes audio of them."""
        raise NotStreamable("This server's engine cannot play live. Set AUDIOCRAFT_API_ENGINE to batching.")

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:
        """See `Engine.queue_place`."""
        with self._condition:
            if request not in self._waiting or self._running is None:
                return None
            position = self._waiting.index(request) + 1
        return QueuePlace(position, (position + 1) * self._mean_seconds)

    def status(self) -> EngineStatus:
        with self._condition:
            return EngineStatus(
                num_waiting=len(self._waiting),
                num_running=int(self._running is not None),
                is_alive=self._thread is None or self._thread.is_alive(),
                models=tuple(stats.status(name) for name, stats in self._stats.items()),
                cpu_kernels="pytorch" if self._cache.device == "cpu" else None,
            )

    def close(self, grace_seconds: float = 0.0) -> None:
        """Accept no more requests, wait `grace_seconds` for those accepted, then end the rest with ShuttingDown."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._waiting and self._running is None, grace_seconds)
            waiting = list(self._waiting)
            self._waiting.clear()
            running = self._running
        for request in waiting:
            request.fail(ShuttingDown())
        if running is not None:
            running.fail(ShuttingDown())
            running.cancel()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _main(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                self._running = request = self._waiting.popleft()
                self._stats.setdefault(request.params.model, LoopStats())
            try:
                self._serve(request)
            finally:
                with self._condition:
                    self._stats[request.params.model].idle()
                    self._running = None
                    self._condition.notify_all()
            del request  # otherwise its error would keep an unloaded model in memory

    def _serve(self, request: EngineRequest) -> None:
        """Run a request to its end; a failure ends only this request."""
        begin = time.monotonic()
        try:
            request.raise_if_stopped()
            self._generate(request)
        except Exception as error:  # noqa: BLE001 - the engine's loop: whatever happens, the caller gets an error
            request.fail(as_request_error(error))
            return
        self._mean_seconds += 0.3 * (time.monotonic() - begin - self._mean_seconds)

    def _generate(self, request: EngineRequest) -> None:
        params, stats = request.params, self._stats[request.params.model]
        step_begin = 0.0

        def on_step(num_frames_done: int, _num_frames_total: int) -> None:
            nonlocal step_begin
            stats.add_steps(ROWS_PER_REQUEST, 1, time.monotonic() - step_begin)
            stats.begin_pass()
            step_begin = time.monotonic()
            request.raise_if_stopped()
            self._remove_stopped()
            request.advance(num_frames_done)

        with self._cache.lease(params.model) as model:
            request.raise_if_stopped()
            request.start(
                model.num_frames(params.duration_seconds),
                sample_rate=model.sample_rate,
                frame_rate=model.frame_rate,
                revision=model.revision,
                precision="fp16" if model.device.type == "cuda" else "exact",
                codec=model.codec_digest,
            )
            stats.begin_pass()
            step_begin = time.monotonic()
            codes = model.generate_codes(params, on_step)
            waveform = _decode(model, codes)
            request.raise_if_stopped()
            if not np.isfinite(waveform).all():
                raise GenerationFailed("The model produced no usable audio. Try another seed or temperature.")
            request.add_codes(codes[0].cpu().numpy().astype(np.uint16))
            request.push(waveform)
            request.finish()

    def _remove_stopped(self) -> None:
        """Remove canceled and expired requests from the queue, so that they do not count toward its limit."""
        with self._condition:
            stopped = [request for request in self._waiting if request.should_stop]
            for request in stopped:
                self._waiting.remove(request)
        for request in stopped:
            try:
                request.raise_if_stopped()
            except AudioCraftError as error:
                request.fail(error)


def _decode(model: LoadedModel, codes: Tensor) -> Waveform:
    """Return the waveform of codes [1, K, T]; more than one window block by block, because memory grows with length."""
    if codes.shape[-1] <= model.max_window_frames:
        waveform: Waveform = model.decode_codes(codes).numpy()
        return waveform
    from audiocraft_api.engine.codec.decoder import make_codec

    return make_codec(model.codec).new_decoder().feed(codes[0], final=True)
