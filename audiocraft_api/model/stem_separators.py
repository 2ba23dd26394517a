"""Separates finished audio into stems: loads each separator when it is first needed, and bounds how many run at once.

Demo models have a separator of their own, which is built on this machine; all others use that of melody models.
Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocraft_api.config.models import ModelSettings
from audiocraft_api.core.errors import AudioCraftError, GenerationFailed, ModelUnavailable, OutOfMemory
from audiocraft_api.core.out_of_memory import is_out_of_memory
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.separation import STEMS, Separation
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.model import checkpoint_file, demo, hub
from audiocraft_api.model.catalog import BUILT_IN, Catalog
from audiocraft_api.model.hub import Hub
from audiocraft_api.model.loading import choose_device, import_libraries

DEMO_DIRECTORY = "demo-separator"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedSeparator:
    """A separator of demucs on a device."""

    network: Any
    device: Any
    name: str  # `<repository>@<revision>`


class StemSeparators:
    """The separators of one process. Implements `core.separation.StemSeparation`."""

    def __init__(self, catalog: Catalog, config: ModelSettings) -> None:
        self._catalog = catalog
        self._config = config
        self._running = threading.BoundedSemaphore(config.max_separations)
        self._loading = threading.Lock()
        self._loaded: dict[str, LoadedSeparator] = {}  # by the source of their files

    def prepare(self, model: str, waiter: Waiter) -> None:
        """See `StemSeparation.prepare`."""
        self._separator(model, waiter)

    def separate(
        self, waveform: Waveform, sample_rate: int, model: str, waiter: Waiter, advance: Callable[[float], None]
    ) -> Separation:
        """See `StemSeparation.separate`."""

        def check(part_done: float) -> None:
            waiter.raise_if_stopped()
            advance(part_done)

        with self._slot(waiter):
            loaded = self._separator(model, waiter)
            try:
                from audiocraft_api.model.separator import stems_of

                stems = stems_of(loaded.network, loaded.device, waveform, sample_rate, check)
            except AudioCraftError:
                raise
            except Exception as error:
                logger.exception("Separating a waveform of shape %s failed.", waveform.shape)
                if is_out_of_memory(error):
                    raise OutOfMemory("There is not enough memory to separate the audio into stems.") from None
                raise GenerationFailed("The audio could not be separated into stems.") from None
        return Separation(stems, loaded.name)

    def unload(self) -> None:
        """Forget the separators. Those that run end first."""
        self._loaded = {}

    @contextmanager
    def _slot(self, waiter: Waiter) -> Iterator[None]:
        waiter.wait_for(lambda seconds: self._running.acquire(timeout=seconds))
        try:
            yield
        finally:
            self._running.release()

    def _separator(self, model: str, waiter: Waiter) -> LoadedSeparator:
        source = BUILT_IN if self._catalog.get(model).is_built_in else self._config.separator
        if source not in self._loaded:
            waiter.wait_for(lambda seconds: self._loading.acquire(timeout=seconds))
            try:
                if (found := self._loaded.get(source)) is None:
                    found = self._load(source)
                    self._loaded = self._loaded | {source: found}
                return found
            finally:
                self._loading.release()
        return self._loaded[source]

    def _load(self, source: str) -> LoadedSeparator:
        import_libraries()
        from audiocraft_api.model import separator

        try:
            directory, revision = self._locate(source)
            network = separator.load(directory)
            device = choose_device(self._config.device)
            network.to(device)
        except ModelUnavailable:
            raise
        # Third-party code reads arbitrary files here and may raise anything, and each request needs a response.
        except Exception as error:
            logger.exception("Loading the separator %s failed.", source)
            raise ModelUnavailable(f"The separator {source} cannot be loaded: {_reason(error)}.", 60.0) from None
        if missing := set(STEMS) - set(network.sources):
            raise ModelUnavailable(f"The separator {source} has no {', '.join(sorted(missing))}.", 60.0)
        logger.info("Loaded the separator %s on %s.", source, device)
        return LoadedSeparator(network, device, f"{source}@{revision}")

    def _locate(self, source: str) -> tuple[Path, str]:
        """Return a separator's directory and revision; download or build it if necessary. Raises ModelUnavailable."""
        if source == BUILT_IN:
            from audiocraft_api.model import demo_separator

            directory = demo.build(DEMO_DIRECTORY, self._config.checkpoints_dir, demo_separator.write)
        elif Path(source).is_dir():
            directory = Path(source)
        else:
            directory = Hub(offline=self._config.offline).snapshot(source, hub.SEPARATOR)
            return directory, directory.name
        digests = "".join(checkpoint_file.sha256(path) for path in sorted(directory.glob("*.safetensors")))
        return directory, hashlib.sha256(digests.encode()).hexdigest()[:40]


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return "there is not enough memory"
    return "its files cannot be read or made" if isinstance(error, OSError) else "its files are damaged"
