"""The batching engine: many requests in one loop per model. What the service sees of all the files beside this one."""

from __future__ import annotations

import importlib
import threading
import time
from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.core.engine import EngineStatus
from audiocraft_api.core.errors import QueueFull, ShuttingDown
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.loop import DecodeLoop
from audiocraft_api.model.loading import import_libraries

if TYPE_CHECKING:
    from audiocraft_api.engine.executor import ModelRunnerFactory
    from audiocraft_api.model.model_cache import ModelCache

# How long `close` waits for threads after it has ended their requests: a step, or a model that is just loading.
JOIN_SECONDS = 10.0
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 600.0


class BatchingEngine:
    """An `Engine` with one decode loop per model."""

    def __init__(self, cache: ModelCache, config: Config, make_model_runner: ModelRunnerFactory | None = None) -> None:
        """`make_model_runner(model, config)` is for tests; by default device and precision decide."""
        self._cache = cache
        self._config = config
        self._make_stepper = make_model_runner
        self._lock = threading.Lock()
        self._loops: dict[str, DecodeLoop] = {}
        self._closing = False
        cache.on_unload(self._drop)

    def import_libraries(self) -> None:
        """See `Engine.import_libraries`."""
        import_libraries()
        importlib.import_module("audiocraft_api.engine.executor")

    def submit(self, params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
        """Take a request; see `Engine.submit`."""
        request = EngineRequest(params, deadline)
        with self._lock:
            if self._closing:
                raise ShuttingDown
            if sum(loop.scheduler.num_overdue for loop in self._loops.values()) >= self._config.engine.max_waiting:
                raise QueueFull("The server is busy; try again later.", self._retry_after_seconds())
            self._loop(params.model).submit(request)
        return request

    def status(self) -> EngineStatus:
        loops = list(self._loops.values())
        return EngineStatus(
            num_waiting=sum(loop.scheduler.num_waiting for loop in loops),
            num_running=sum(loop.num_running for loop in loops),
            is_alive=all(loop.is_alive for loop in loops),
            models=tuple(loop.status() for loop in loops),
        )

    def close(self, grace_seconds: float = 0.0) -> None:
        """Take no more work, let what was taken go on for `grace_seconds`, then end the rest with ShuttingDown."""
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
                loop.drop()

    def _loop(self, name: str) -> DecodeLoop:
        if name not in self._loops:
            self._loops[name] = DecodeLoop(name, self._cache, self._config, self._make_stepper)
        return self._loops[name]

    def _retry_after_seconds(self) -> float:
        seconds = min((loop.seconds_to_next_place for loop in self._loops.values()), default=0.0)
        return min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _drop(self, name: str) -> None:
        loop = self._loops.get(name)
        if loop is not None:
            loop.drop()
