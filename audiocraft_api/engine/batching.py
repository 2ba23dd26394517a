"""The batching engine: many requests in one decode loop per model. Implements `core.engine.Engine`."""

from __future__ import annotations

import importlib
import threading
import time
from typing import TYPE_CHECKING

from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.core.engine import EngineStatus, QueuePlace
from audiocraft_api.core.errors import QueueFull, ShuttingDown
from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.cpu.native.library import known_kernels, load_library
from audiocraft_api.engine.loop import DecodeLoop
from audiocraft_api.model.loading import choose_device, import_libraries

if TYPE_CHECKING:
    from audiocraft_api.engine.executor import CodecFactory, ModelExecutor, ModelRunnerFactory
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.model_cache import ModelCache

# How long `close` waits for threads after it has ended their requests: a step, or a model that is being loaded.
JOIN_SECONDS = 10.0
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 600.0


class BatchingEngine:
    """An `Engine` with one decode loop per model."""

    def __init__(
        self,
        cache: ModelCache,
        config: EngineSettings,
        *,
        model_runner_factory: ModelRunnerFactory | None = None,
        codec_factory: CodecFactory | None = None,
    ) -> None:
        """By default, the device and the precision decide which model runner is used, and codes become audio."""
        self._cache = cache
        self._config = config
        self._model_runner_factory = model_runner_factory
        self._codec_factory = codec_factory
        self._lock = threading.Lock()
        self._loops: dict[str, DecodeLoop] = {}
        self._closing = False
        cache.on_unload(self._unload)

    def import_libraries(self) -> None:
        """See `Engine.import_libraries`."""
        import_libraries()
        importlib.import_module("audiocraft_api.engine.batch")
        if choose_device(self._cache.device).type == "cpu":
            load_library()

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Queue a request; see `Engine.submit`."""
        request = EngineRequest(params, deadline)
        self._submit(request)
        return request

    def submit_live(self, request: LiveRequest) -> None:
        """Queue a live request; see `Engine.submit_live`."""
        self._submit(request)

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:
        """Return where a request waits; see `Engine.queue_place`."""
        return self._loops[request.params.model].queue_place(request)

    def status(self) -> EngineStatus:
        loops = list(self._loops.values())
        return EngineStatus(
            num_waiting=sum(loop.scheduler.num_waiting for loop in loops),
            num_running=sum(loop.num_running for loop in loops),
            is_alive=all(loop.is_alive for loop in loops),
            models=tuple(loop.status() for loop in loops),
            cpu_kernels=known_kernels() if self._cache.device in ("cpu", "auto") else None,
        )

    def close(self, grace_seconds: float = 0.0) -> None:
        """Accept no more requests, wait `grace_seconds` for those accepted, then end the rest with ShuttingDown."""
        with self._lock:
            self._closing = True
            loops = list(self._loops.values())
        deadline = time.monotonic() + grace_seconds
        for loop in loops:
            loop.join(max(0.0, deadline - time.monotonic()))
        for loop in loops:
            loop.abort()
        deadline = time.monotonic() + JOIN_SECONDS
        for loop in loops:
            if loop.join(max(0.0, deadline - time.monotonic())):
                loop.unload()

    def _submit(self, request: EngineRequest) -> None:
        with self._lock:
            if self._closing:
                raise ShuttingDown
            if sum(loop.scheduler.queue_depth for loop in self._loops.values()) >= self._config.max_waiting:
                raise QueueFull("Too many requests are waiting. Try again later.", self._retry_after_seconds())
            self._loop(request.params.model).submit(request)

    def _loop(self, name: str) -> DecodeLoop:
        if name not in self._loops:
            max_requests = self._config.max_batch_requests
            self._loops[name] = DecodeLoop(name, self._cache, max_requests, self._build_executor)
        return self._loops[name]

    def _build_executor(self, model: LoadedModel) -> ModelExecutor:
        """Called in a loop's thread, so that callers never wait for imports."""
        from audiocraft_api.engine.executor import build_executor

        return build_executor(
            self._cache,
            model,
            self._config,
            model_runner_factory=self._model_runner_factory,
            codec_factory=self._codec_factory,
        )

    def _retry_after_seconds(self) -> float:
        seconds = min((loop.seconds_to_next_slot for loop in self._loops.values()), default=0.0)
        return min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _unload(self, name: str) -> None:
        loop = self._loops.get(name)
        if loop is not None:
            loop.unload()
