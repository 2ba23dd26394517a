"""Loads and unloads the models of this process on request, and says how far that is.

Nothing here waits: the engine's threads load, and the model cache unloads when the last lease ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import ModelBusy, NoModelsHere
from audiocraft_api.core.load_progress import LoadProgress
from audiocraft_api.core.params import GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.generation.preloading import WARM_UP_SECONDS
from audiocraft_api.model.model_cache import ModelCache, Residency

logger = logging.getLogger(__name__)

ControlState = Literal["unloaded", "loading", "loaded", "unloading", "failed"]


@dataclass(frozen=True)
class ModelState:
    """The state of one model in this process."""

    state: ControlState
    error: str | None = None  # why the last load failed
    progress: LoadProgress | None = None  # of a load


class ModelControl:
    """Loads and unloads models. Thread-safe."""

    def __init__(self, engine: Engine | None, cache: ModelCache) -> None:
        """`engine` is None in a server whose tasks Celery workers run."""
        self._engine = engine
        self._cache = cache
        self._lock = threading.Lock()
        self._loads: dict[str, EngineRequest] = {}  # by model, until they end

    def load(self, name: str) -> None:
        """Begin to load and warm up a model, unless it is loaded or being loaded.

        A pending `unload` of the model is dropped. Raises NoModelsHere, QueueFull, ShuttingDown.
        """
        engine = self._require_engine()
        self._cache.keep(name)
        if self.states([name])[name].state in ("loading", "loaded"):
            return
        request = engine.submit(GenerationParams(name, "warm up", WARM_UP_SECONDS, seed=0))
        logger.info("Loading %s was requested.", name)
        with self._lock:
            self._loads[name] = request
        request.add_done_callback(lambda _request: self._forget(name, request))

    def unload(self, name: str, *, wait: bool) -> None:
        """Unload a model, or begin to if it is in use and `wait`. Cancels a load. Raises NoModelsHere, ModelBusy."""
        self._require_engine()
        with self._lock:
            load = self._loads.get(name)
        if load is not None and not wait:
            raise ModelBusy(f"{name!r} is being loaded. Try again later, or ask to wait until it is.")
        self._cache.unload(name, wait=wait)
        logger.info("Unloading %s was requested.", name)
        if load is not None:
            load.cancel()

    def states(self, names: Collection[str]) -> dict[str, ModelState]:
        """Return the states of several models."""
        status = None if self._engine is None else self._engine.status()
        preparing = {model.model for model in status.models if model.is_loading} if status else set()
        with self._lock:
            preparing |= set(self._loads)
        return {name: _state(self._cache.residency(name), name in preparing) for name in names}

    def _forget(self, name: str, request: EngineRequest) -> None:
        with self._lock:
            if self._loads.get(name) is request:
                del self._loads[name]

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise NoModelsHere(
                "This server sends generations to Celery workers, which load models by themselves. Their settings say "
                "which models they preload, and when they unload them."
            )
        return self._engine


def _state(found: Residency, is_preparing: bool) -> ModelState:
    """Return the state of a model that the engine prepares, or not."""
    if found.is_unloading:
        return ModelState("unloading", progress=found.progress)
    if found.state == "loading":
        return ModelState("loading", progress=found.progress or LoadProgress("waiting"))
    if is_preparing:
        return ModelState("loading", progress=LoadProgress("preparing" if found.state == "loaded" else "waiting"))
    return ModelState(found.state, found.error)
