"""Is this process alive, and does it take work? Asked by routes and by the admin listener; waits for nothing.

Liveness never depends on Redis or on a store: a restart mends neither. A busy process is ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from audiocraft_api import __version__
from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import EngineDied, EngineStalled, ModelLoading, ShuttingDown, Unavailable
from audiocraft_api.model.model_cache import ModelCache

SOON_SECONDS = 1.0


class Health:
    """The health of a server or of a worker."""

    def __init__(
        self,
        engine: Engine,
        cache: ModelCache,
        config: Config,
        draining: threading.Event,
        *,
        num_queued: Callable[[], int] = lambda: 0,
        pending_models: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        """`num_queued` counts tasks that wait, `pending_models` names what must be loaded before it is ready."""
        self._engine = engine
        self._cache = cache
        self._draining = draining
        self._num_queued = num_queued
        self._pending_models = pending_models
        self._stall_seconds = config.telemetry.engine_stall_seconds

    def report(self) -> dict[str, Any]:
        """Return what `/health` tells beside `status`."""
        status = self._engine.status()
        return {
            "version": __version__,
            "models_loaded": self._cache.loaded_names(),
            "device": self._cache.device,
            "queue": {"waiting": status.num_waiting + self._num_queued(), "running": status.num_running},
        }

    @property
    def is_ready(self) -> bool:
        try:
            self.check_ready()
        except Unavailable:
            return False
        return True

    def check_ready(self) -> None:
        """Raise why no work should come now: ShuttingDown, EngineDied, EngineStalled, ModelLoading."""
        if self._draining.is_set():
            raise ShuttingDown
        status = self._engine.status()
        if not status.is_alive:
            raise EngineDied("The engine has died; the server must be restarted.")
        for model in status.models:
            if model.stalled_seconds > self._stall_seconds:
                seconds = model.stalled_seconds
                raise EngineStalled(
                    f"The engine has work for {model.model} and made no step for {seconds:.0f} seconds."
                )
        if names := self._pending_models():
            raise ModelLoading(f"Still to be loaded: {', '.join(names)}.", SOON_SECONDS)
        states = self._cache.states()
        loading = {name for name, state in states.items() if state == "loading"}
        loading |= {model.model for model in status.models if model.is_loading}
        usable = {name for name, state in states.items() if state == "loaded"} - loading
        if loading and not usable:
            raise ModelLoading(f"The first model is being loaded: {', '.join(sorted(loading))}.", SOON_SECONDS)
