"""Reports whether this process is alive and ready for work. Routes and the admin listener call it; it never blocks.

Liveness does not depend on Redis or on a store, because a restart would not repair either. A busy process is ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from audiocraft_api import __version__
from audiocraft_api.config.telemetry import TelemetrySettings
from audiocraft_api.core.engine import EngineStatus
from audiocraft_api.core.errors import EngineDied, EngineStalled, ModelLoading, ShuttingDown, Unavailable
from audiocraft_api.model.model_cache import ModelCache

RETRY_SECONDS = 1.0  # `Retry-After` while a model is being loaded


class Health:
    """The health of a server or of a Celery worker. Thread-safe."""

    def __init__(
        self,
        engine_status: Callable[[], EngineStatus],
        cache: ModelCache,
        config: TelemetrySettings,
        draining: threading.Event,
        *,
        num_queued: Callable[[], int] = lambda: 0,
        pending_models: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        """`num_queued` counts waiting tasks. `pending_models` names the models that must be preloaded first."""
        self._engine_status = engine_status
        self._cache = cache
        self._draining = draining
        self._num_queued = num_queued
        self._pending_models = pending_models
        self._stall_seconds = config.engine_stall_seconds

    def report(self) -> dict[str, Any]:
        """Return the fields of `/health` other than `status`."""
        status = self._engine_status()
        return {
            "version": __version__,
            "models_loaded": self._cache.loaded_names(),
            "device": self._cache.device,
            "cpu_kernels": status.cpu_kernels,
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
        """Raise ShuttingDown, EngineDied, EngineStalled or ModelLoading if this process should not receive work."""
        if self._draining.is_set():
            raise ShuttingDown
        status = self._engine_status()
        if not status.is_alive:
            raise EngineDied("The engine has died. Restart the server.")
        for model in status.models:
            if model.stalled_seconds > self._stall_seconds:
                raise EngineStalled(
                    f"The engine has pending work for {model.model} but has made no progress for "
                    f"{model.stalled_seconds:.0f} seconds."
                )
        if names := self._pending_models():
            raise ModelLoading(f"The server is still loading these models: {', '.join(names)}.", RETRY_SECONDS)
        states = self._cache.states()
        loading = {name for name, state in states.items() if state == "loading"}
        loading |= {model.model for model in status.models if model.is_loading}
        usable = {name for name, state in states.items() if state == "loaded"} - loading
        if loading and not usable:
            raise ModelLoading(f"The server is loading its first model: {', '.join(sorted(loading))}.", RETRY_SECONDS)
