"""Prepares the engine when the server starts: imports its libraries, then loads the models that the settings name.

Each model serves one short generation, so that its weights are packed and its text encoder and codec have run once.
Knows only the interface of the engine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import AudioCraftError, ShuttingDown
from audiocraft_api.core.params import GenerationParams

WARM_UP_SECONDS = 0.1  # of audio: a few decoding steps and one block of the codec

logger = logging.getLogger(__name__)


class Preloader:
    """Imports the engine's libraries and loads models, one after the other, in its own thread."""

    def __init__(self, engine: Engine, names: Sequence[str], *, import_libraries: bool = False) -> None:
        self._engine = engine
        self._names = names
        self._import_libraries = import_libraries
        self._pending: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[str, ...]:
        """Names of the models that are still to be loaded. A model that failed is not among them: the next request
        for it tries again."""
        return self._pending

    def start(self) -> None:
        """Start the thread. Call once, in the process that serves: threads and devices do not survive a fork."""
        self._pending = tuple(self._names)
        if self._pending or self._import_libraries:
            threading.Thread(target=self._run, name="preload", daemon=True).start()

    def _run(self) -> None:
        if self._import_libraries:
            with suppress(AudioCraftError):  # logged by the engine; a request that needs a model raises it again
                self._engine.import_libraries()
        for name in self._names:
            try:
                self._engine.submit(GenerationParams(name, "warm up", WARM_UP_SECONDS, seed=0)).result()
                logger.info("Preloaded %s.", name)
            except ShuttingDown:
                return
            except AudioCraftError as error:
                logger.warning("%s could not be preloaded; the next request for it tries again: %s", name, error)
            self._pending = self._pending[1:]
