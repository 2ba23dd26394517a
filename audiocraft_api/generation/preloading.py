"""Loads models before anybody asks, by a short generation each: what it takes is what a request takes.

So a model is not only loaded: its weights are packed, its text encoder and codec have run once. Knows the engine only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import AudioCraftError, ShuttingDown
from audiocraft_api.core.params import GenerationParams

# Some steps and one block of the codec.
WARM_UP_SECONDS = 0.1

logger = logging.getLogger(__name__)


class Preloader:
    """Loads models one after the other, in a thread of its own."""

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        self._engine = engine
        self._names = names
        self._pending: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[str, ...]:
        """Return which models are still to be loaded. One that failed is not: the next request for it tries again."""
        return self._pending

    def start(self) -> None:
        """Begin, once, in the process that serves: threads and devices do not survive a fork."""
        self._pending = tuple(self._names)
        if self._pending:
            threading.Thread(target=self._run, name="preload", daemon=True).start()

    def _run(self) -> None:
        for name in self._names:
            try:
                self._engine.submit(GenerationParams(name, "warm up", WARM_UP_SECONDS, seed=0)).result()
                logger.info("%s is loaded and ready.", name)
            except ShuttingDown:
                return
            except AudioCraftError as error:
                logger.warning("%s could not be loaded at the start; a request tries again: %s", name, error)
            self._pending = self._pending[1:]
