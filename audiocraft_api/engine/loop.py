"""The decode loop of one model: its queue, and the thread that decodes while there are requests.

Callers' threads submit requests and read counts here; `Batch` does the decoding. The thread ends with its last request
and releases the model's lease. What was built from the model stays until the model is unloaded. Only this thread
imports torch, so callers never wait for imports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from audiocraft_api.core.constants import FRAME_RATE
from audiocraft_api.core.engine import ModelStatus, QueuePlace
from audiocraft_api.core.errors import AudioCraftError, ShuttingDown
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.loop_stats import LoopStats
from audiocraft_api.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from audiocraft_api.engine.batch import Batch
    from audiocraft_api.engine.executor import ModelExecutor
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.model_cache import ModelCache

# How often a loop that has nothing to decode checks for canceled requests.
POLL_SECONDS = 0.05


class DecodeLoop:
    """Decodes the requests of one model. The underscored methods run in the loop's own thread."""

    def __init__(
        self, name: str, cache: ModelCache, max_requests: int, build: Callable[[LoadedModel], ModelExecutor]
    ) -> None:
        """`build` prepares the loaded model; it is called in the loop's thread, once for each load of the model."""
        self._name = name
        self._cache = cache
        self._max_requests = max_requests
        self._build = build
        self.scheduler = Scheduler(max_requests)
        self._stats = LoopStats()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._aborting = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_unloaded = False
        self._executor: ModelExecutor | None = None
        self._batch: Batch | None = None  # while the thread has a lease

    def submit(self, request: EngineRequest) -> None:
        """Queue a request, and start the thread if there is none."""
        with self._lock:
            self.scheduler.add(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name=f"engine-{self._name}", daemon=True)
                self._thread.start()
        self._wake.set()

    @property
    def num_running(self) -> int:
        """Requests that are being decoded, or wait for the codec's last block."""
        batch = self._batch
        return self.scheduler.num_running + (batch.num_draining if batch else 0)

    @property
    def seconds_to_next_slot(self) -> float:
        """Estimate from the measured speed when the next running request ends."""
        batch = self._batch
        return min(batch.frames_left, default=0) * self._stats.step_seconds if batch else 0.0

    def queue_place(self, request: EngineRequest) -> QueuePlace | None:
        """See `Engine.queue_place`. The estimate assumes that the requests ahead are as long as this one."""
        position = self.scheduler.position(request) if request.state == "waiting" else None
        if position is None:
            return None
        batch = self._batch
        frames_left = sorted(batch.frames_left) if batch else []
        if not frames_left:
            return QueuePlace(position, None)
        num_rounds, index = divmod(position - 1, len(frames_left))
        num_frames = frames_left[index] + (num_rounds + 1) * request.params.duration_seconds * FRAME_RATE
        return QueuePlace(position, num_frames * self._stats.step_seconds or None)

    def status(self) -> ModelStatus:
        """Return the state of the model without waiting."""
        executor, batch = self._executor, self._batch
        return self._stats.status(
            self._name,
            is_loading=self._thread is not None and executor is None,
            model_runner=executor.model_runner if executor else None,
            num_slots=batch.num_slots_used if batch else 0,
        )

    @property
    def is_alive(self) -> bool:
        """Return False if the thread died without ending its requests. Without requests there is no thread."""
        with self._lock:
            return self._thread is None or self._thread.is_alive()

    def abort(self) -> None:
        """End every request: waiting ones now, even while the model loads; running ones within a step."""
        self._aborting.set()
        self.scheduler.fail_waiting(ShuttingDown())
        self._wake.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread to end; return whether it has."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
        return thread is None or not thread.is_alive()

    def unload(self) -> None:
        """Free packed weights and caches, because the model is unloaded: now, or when the thread ends."""
        with self._lock:
            self._is_unloaded = True
            if self._thread is None:
                self._close_executor()

    def _main(self) -> None:
        while True:
            try:
                self._serve_with_lease()
            except Exception as error:  # noqa: BLE001 - ends all requests instead
                self._fail_all(as_request_error(error))
            self._batch = None
            with self._lock:
                if not self.scheduler.num_waiting:
                    self._thread = None
                    is_unloaded = self._is_unloaded  # while the lease ended
                    if is_unloaded:
                        self._close_executor()
                    break
        if is_unloaded:
            self._cache.free_memory()  # which this thread referred to when the model was unloaded

    def _serve_with_lease(self) -> None:
        with self._cache.lease(self._name) as model:
            self._serve(model)

    def _serve(self, model: LoadedModel) -> None:
        """Decode on a leased model until no request is left."""
        from audiocraft_api.engine.batch import Batch

        executor = self._executor_for(model)
        self.scheduler.set_slots(executor.model_runner.num_slots)
        batch = self._batch = Batch(
            executor,
            self.scheduler,
            self._stats,
            max_draining=self._max_requests,
            wake=self._wake,
            aborting=self._aborting,
        )
        try:
            while batch.has_work or self.scheduler.num_waiting:
                self._stats.begin_pass()
                self._wake.clear()
                if not batch.step():
                    self._wake.wait(POLL_SECONDS)
            executor.finish_startup()  # in case no step was made
        finally:
            self._stats.idle()
            batch.close()

    def _fail_all(self, error: AudioCraftError) -> None:
        """End every request, because the model did not load or the loop itself failed."""
        if self._batch is not None:
            self._batch.fail_all(error)
        self.scheduler.fail_waiting(error)
        self.scheduler.reset()
        self._close_executor()  # its state is unknown

    def _executor_for(self, model: LoadedModel) -> ModelExecutor:
        """Build the executor once for each load of the model."""
        # Not under the lock, because it takes seconds. While there is a thread, `unload` leaves the executor alone.
        self._is_unloaded = False
        if self._executor is None or self._executor.model is not model:
            self._close_executor()
            self._executor = self._build(model)
        return self._executor

    def _close_executor(self) -> None:
        if self._executor is not None:
            self._executor.close()
            self._executor = None
