"""Keeps loaded models: loads each once, counts its leases, unloads models that are idle or over the memory budget.

Queries never wait for a load. Importing this module does not import torch; loading a model does.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from audiocraft_api.config import Config
from audiocraft_api.core.errors import ModelBusy, ModelUnavailable, ShuttingDown
from audiocraft_api.core.load_progress import LoadProgress, ReportProgress
from audiocraft_api.model.catalog import Catalog, ModelSpec
from audiocraft_api.model.loading import load_model
from audiocraft_api.model.revisions import known_revision

if TYPE_CHECKING:
    from audiocraft_api.model.audiocraft_adapter import LoadedModel

logger = logging.getLogger(__name__)

ModelState = Literal["unloaded", "loading", "loaded", "failed"]
UnloadListener = Callable[[str], None]
Load = Callable[[ModelSpec, Catalog, Config, ReportProgress], "LoadedModel"]


def free_memory() -> None:
    """Return the memory of unreferenced objects to the device and the operating system."""
    gc.collect()
    _trim()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(eq=False)
class _Slot:
    """The state of one model, guarded by the cache's condition."""

    state: ModelState = "unloaded"
    model: LoadedModel | None = None
    error: ModelUnavailable | None = None  # of the last load
    num_loads: int = 0  # ended loads, successful or not; a new count means that a waiter's load has ended
    num_leases: int = 0
    last_used: float = 0.0  # time.monotonic()
    progress: LoadProgress | None = None  # while the model is loaded
    must_unload: bool = False  # once it has no lease


@dataclass(frozen=True)
class Residency:
    """Whether a model is in memory, for those who manage the models."""

    state: ModelState = "unloaded"
    error: str | None = None  # why the last load failed
    progress: LoadProgress | None = None
    is_unloading: bool = False  # when its leases have ended


class ModelCache:
    """The loaded models of one process. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        config: Config,
        load: Load = load_model,
        free_memory: Callable[[], None] = free_memory,
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._load = load
        self._free_memory = free_memory
        self._slots = {spec.name: _Slot() for spec in catalog}
        self._condition = threading.Condition()
        self._listeners: list[UnloadListener] = []
        self._closed = False
        self._reaper: threading.Thread | None = None

    @contextmanager
    def lease(self, name: str) -> Iterator[LoadedModel]:
        """Lease a model, which is loaded if necessary and not unloaded before the `with` block ends.

        Raises InvalidRequest for an unknown or refused name, ModelUnavailable when the model cannot be loaded, and
        ShuttingDown after `close`. If a load fails, every caller that waits for it gets its error; the next lease tries
        again.
        """
        spec = self._catalog.get(name)
        slot = self._slots[name]
        model = self._acquire(spec, slot)
        try:
            yield model
        finally:
            with self._condition:
                slot.num_leases -= 1
                slot.last_used = time.monotonic()
                self._condition.notify_all()
                is_closed, must_unload = self._closed, slot.must_unload
            if is_closed:
                self._unload()
            elif must_unload:
                self._unload(among={slot})
            self._unload_over_budget()

    @property
    def device(self) -> str:
        """The device that models run on; `auto` until the first one has been loaded."""
        with self._condition:
            models = [slot.model for slot in self._slots.values() if slot.model is not None]
        return models[0].device.type if models else self._config.models.device

    def loaded_names(self) -> list[str]:
        """Return the names of the models that are loaded now."""
        with self._condition:
            return [name for name, slot in self._slots.items() if slot.state == "loaded"]

    def states(self) -> dict[str, ModelState]:
        """Return the state of each model. `failed`: the last load failed, and the next request tries again."""
        with self._condition:
            return {name: slot.state for name, slot in self._slots.items()}

    def residency(self, name: str) -> Residency:
        """Return whether a model is in memory, and the progress of its load."""
        with self._condition:
            slot = self._slots[name]
            error = slot.error.message if slot.state == "failed" and slot.error is not None else None
            return Residency(slot.state, error, slot.progress, slot.must_unload)

    def unload(self, name: str, *, wait: bool) -> None:
        """Unload a model: now if it is not in use, else, with `wait`, when its last lease has ended.

        A model that is not loaded stays as it is. Raises ModelBusy without `wait`, for a model in use or being loaded.
        """
        slot = self._slots[name]
        with self._condition:
            is_busy = slot.num_leases > 0 or slot.state == "loading"
            if is_busy and not wait:
                raise ModelBusy(f"{name!r} is in use. Try again later, or ask to wait until it is not.")
            slot.must_unload = is_busy
        if not is_busy:
            self._unload(among={slot})

    def keep(self, name: str) -> None:
        """Forget an `unload` that still waits."""
        with self._condition:
            self._slots[name].must_unload = False

    def memory(self) -> dict[str, int]:
        """Return the bytes of weights of each loaded model."""
        with self._condition:
            models = {name: slot.model for name, slot in self._slots.items() if slot.model is not None}
        return {name: model.weight_bytes for name, model in models.items()}

    def revision(self, name: str) -> str | None:
        """Return the revision of a loaded model, or None."""
        with self._condition:
            slot = self._slots.get(name)
            return slot.model.revision if slot is not None and slot.model is not None else None

    def known_revision(self, name: str) -> str | None:
        """Return the revision that a load would find now, or None if it is unknown before a load. Loads nothing."""
        return known_revision(self._catalog.get(name), self._catalog)

    def on_unload(self, listener: UnloadListener) -> None:
        """Call `listener(name)` after a model was unloaded, so that anything built from it can be freed as well."""
        self._listeners.append(listener)

    def release_decoder_weights(self, model: LoadedModel, num_bytes: int) -> None:
        """Free a model's decoder weights, of which the engine that leases it has packed a copy of `num_bytes`.

        When the engine frees its copy, it must call `evict`.
        """
        model.release_decoder_weights(num_bytes)
        _trim()

    def free_memory(self) -> None:
        """Return the memory of what was unloaded, for a caller that referred to it when it was."""
        self._free_memory()

    def evict(self, model: LoadedModel) -> None:
        """Forget a model if its decoder weights were released, so that the next lease loads it again."""
        with self._condition:
            for slot in self._slots.values():
                if slot.model is model and model.has_released_decoder_weights:
                    slot.model, slot.state, slot.must_unload = None, "unloaded", False

    def close(self) -> None:
        """Load no more models, and unload those without a lease; others are unloaded when their lease ends."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            reaper = self._reaper
        if reaper is not None:
            reaper.join()
        self._unload()

    def _acquire(self, spec: ModelSpec, slot: _Slot) -> LoadedModel:
        with self._condition:
            while True:
                if self._closed:
                    raise ShuttingDown
                if slot.model is not None:
                    slot.num_leases += 1
                    slot.last_used = time.monotonic()
                    return slot.model
                if slot.state != "loading":
                    slot.state = "loading"
                    break
                self._await_load(slot)
        return self._load_into(spec, slot)

    def _await_load(self, slot: _Slot) -> None:
        """Wait for a load in another thread; the caller holds the condition. Raises the load's error."""
        awaited = slot.num_loads
        self._condition.wait_for(lambda: slot.num_loads > awaited or self._closed)
        if slot.error is not None:
            raise ModelUnavailable(slot.error.message, slot.error.retry_after_seconds)

    def _load_into(self, spec: ModelSpec, slot: _Slot) -> LoadedModel:
        """Load outside the lock, then notify the waiters."""
        model, error = None, ModelUnavailable(f"Loading {spec.name!r} was interrupted. Try again.")

        def report(progress: LoadProgress) -> None:
            slot.progress = progress

        try:
            model = self._load(spec, self._catalog, self._config, report)
        except ModelUnavailable as failure:
            error = failure
            raise
        finally:
            with self._condition:
                slot.num_loads += 1
                slot.model, slot.state = model, "failed" if model is None else "loaded"
                slot.error = error if model is None else None
                slot.progress = None
                slot.must_unload = slot.must_unload and model is not None
                slot.num_leases += model is not None
                slot.last_used = time.monotonic()
                self._condition.notify_all()
            if model is None:
                self._free_memory()
        self._unload_over_budget()
        self._start_reaper()
        return model

    def _unload_over_budget(self) -> None:
        """Unload the least recently used models without a lease until the rest fits into the budget."""
        budget = self._config.models.memory_bytes
        if not budget:
            return
        with self._condition:
            sizes = {slot: slot.model.weight_bytes for slot in self._slots.values() if slot.model is not None}
            excess = sum(sizes.values()) - budget
            doomed: set[_Slot] = set()
            for slot in sorted(sizes, key=lambda slot: slot.last_used):
                if excess > 0 and slot.num_leases == 0:
                    doomed.add(slot)
                    excess -= sizes[slot]
        self._unload(among=doomed)

    def _unload(self, among: set[_Slot] | None = None, unused_since: float = math.inf) -> None:
        """Unload models without a lease, last used no later than `unused_since`: all, or only those in `among`."""
        unloaded = []
        with self._condition:
            for name, slot in self._slots.items():
                is_free = slot.model is not None and slot.num_leases == 0
                if is_free and slot.last_used <= unused_since and (among is None or slot in among):
                    unloaded.append(name)
                    slot.model, slot.state, slot.must_unload = None, "unloaded", False
        for name in unloaded:
            for listener in self._listeners:
                listener(name)
            logger.info("Unloaded %s.", name)
        if unloaded:
            self._free_memory()

    def _start_reaper(self) -> None:
        with self._condition:
            if self._config.models.idle_seconds and self._reaper is None and not self._closed:
                self._reaper = threading.Thread(target=self._reap, name="model-reaper", daemon=True)
                self._reaper.start()

    def _reap(self) -> None:
        """Unload models that have been idle for long enough, until the cache is closed."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed, self._seconds_to_next())
                if self._closed:
                    return
            self._unload(unused_since=time.monotonic() - self._config.models.idle_seconds)

    def _seconds_to_next(self) -> float:
        idle_since = [slot.last_used for slot in self._slots.values() if slot.model is not None and not slot.num_leases]
        idle_seconds = self._config.models.idle_seconds
        return max(0.0, min(idle_since) + idle_seconds - time.monotonic()) if idle_since else idle_seconds


def _trim() -> None:
    """Return free pages to the operating system; by itself, glibc does that only at the end of its heaps."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
