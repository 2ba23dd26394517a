"""The decode loop of one model: schedule, run, postprocess, in one thread that lives while there is work.

Each pass of `step` lets requests in, runs every one of them by one piece, and hands finished frames to the codec's thread.
A request that fails leaves alone. With the last request gone the thread ends and the model's lease with it. Only this
thread imports torch, once a model is loaded: callers never wait for imports.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from audiocraft_api.config import Config
from audiocraft_api.core.engine import ModelStatus
from audiocraft_api.core.errors import AudioCraftError, ShuttingDown
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.loop_stats import LoopStats
from audiocraft_api.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from audiocraft_api.engine.executor import ModelExecutor, ModelRunnerFactory
    from audiocraft_api.engine.sequence import RunningRequest, WindowInputs
    from audiocraft_api.model.audiocraft_adapter import LoadedModel
    from audiocraft_api.model.model_cache import ModelCache

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between looks for canceled requests while there is nothing to decode


class DecodeLoop:
    """Decodes the requests of one model. `submit` and the numbers are for callers' threads, the rest is the loop's."""

    def __init__(self, name: str, cache: ModelCache, config: Config, make_runner: ModelRunnerFactory | None) -> None:
        self._name = name
        self._cache = cache
        self._config = config
        self._make_stepper = make_runner
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._aborting = self._is_dropped = False
        self.scheduler = Scheduler(config.engine.max_batch_requests)
        self._meter = LoopStats()
        self._running: list[RunningRequest] = []
        self._draining: set[RunningRequest] = set()  # decoded; the codec has not ended with them yet
        self._prepared: ModelExecutor | None = None

    # --- callers' threads

    def submit(self, request: EngineRequest) -> None:
        """Put a request in line, and start the thread when there is none."""
        with self._lock:
            self.scheduler.add(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name=f"engine-{self._name}", daemon=True)
                self._thread.start()
        self._wake.set()

    @property
    def num_running(self) -> int:
        """Requests that are decoded, or wait for the codec's last block."""
        return self.scheduler.num_running + len(self._draining)

    @property
    def seconds_to_next_place(self) -> float:
        """Estimate when a running request ends, from the measured speed."""
        remaining = [total - done for done, total in (run.request.progress for run in list(self._running))]
        return min(remaining, default=0) * self._meter.step_seconds

    def status(self) -> ModelStatus:
        """Tell what is done with the model; waits for nothing."""
        prepared = self._prepared
        return self._meter.status(
            self._name,
            is_loading=self._thread is not None and prepared is None,
            model_runner=prepared.model_runner if prepared else None,
            num_slots=sum(len(run.slots) for run in list(self._running)),
        )

    @property
    def is_alive(self) -> bool:
        """False when the thread has died without ending its requests; there is none while there is no work."""
        with self._lock:
            return self._thread is None or self._thread.is_alive()

    def refuse_waiting(self) -> None:
        for request in self.scheduler.take_waiting():
            request.fail(ShuttingDown())

    def abort(self) -> None:
        """End every request: waiting ones at once, even while the model loads, running ones within a step."""
        self._aborting = True
        self.refuse_waiting()
        self._wake.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait until the thread has ended; say whether it has."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
        return thread is None or not thread.is_alive()

    def drop(self) -> None:
        """Let go of prepared weights and cache, because the model is unloaded; at once, or when the thread ends."""
        with self._lock:
            self._is_dropped = True
            if self._thread is None:
                self._discard()

    # --- the loop's thread

    def _main(self) -> None:
        while True:
            try:
                with self._cache.lease(self._name) as model:
                    self._serve(model)
            except Exception as error:  # noqa: BLE001
                self._fail_all(as_request_error(error))
            with self._lock:
                if not self._has_work():
                    self._thread = None
                    if self._is_dropped:  # as the lease ended
                        self._discard()
                    return

    def _serve(self, model: LoadedModel) -> None:
        """Decode on a leased model until no request is left."""
        from audiocraft_api.engine.codec.batching import CodecBatching
        from audiocraft_api.engine.codec.worker import CodecWorker

        ready = self._prepare(model)
        self.scheduler.open(ready.model_runner.num_slots)
        with ThreadPoolExecutor(1, "engine-preparation") as self._preparation:
            self._codec = CodecWorker(ready.make_codec, model.device, self._drained)
            self._delivery = CodecBatching(is_shared=model.device.type == "cpu")
            try:
                while self._has_work():
                    self._meter.begin_pass()
                    self._wake.clear()
                    self.step()
                ready.settle(self._cache)  # where no step came to it
            finally:
                self._meter.rest()
                self._codec.close()
                del self._codec

    def step(self) -> None:
        """Make one pass over all requests."""
        self._schedule()
        decoded = self._run()
        self._postprocess()
        if decoded:
            self._ready.settle(self._cache)
            self._codec.begin()
        else:
            self._wake.wait(POLL_SECONDS)

    def _schedule(self) -> None:
        """Let those go that are to stop, and new ones in."""
        if self._aborting:
            self.refuse_waiting()
        for request in self.scheduler.take_stopped():
            self._end_stopped(request)
        for run in list(self._running):
            if self._aborting:
                run.request.fail(ShuttingDown())
            self._end_stopped(run.request)
            if run.request.has_ended:
                self._leave(run)
        # The codec's backlog is bounded: where it is the slower part, decoding waits for it.
        if len(self._draining) >= self._config.engine.max_batch_requests:
            return
        from audiocraft_api.engine.sequence import RunningRequest

        for request, slots in self.scheduler.admit():
            run = RunningRequest(request, slots)
            self._prepare_window(run, self._preparation.submit(self._ready.preparer.first, run.params))
            self._running.append(run)

    def _run(self) -> bool:
        """Advance every request that can; say whether one could."""
        for run in list(self._running):
            if run.preparation is not None and run.preparation.done():
                with self._failing_alone(run):
                    self._begin_window(run)
        prefilling = [run for run in self._running if run.preparation is None and not run.is_decoding]
        for run in prefilling:
            with self._failing_alone(run):
                self._ready.model_runner.prefill(run)
        decoding = [run for run in self._running if run.is_decoding and run not in prefilling]
        if decoding:
            self._decode(decoding)
        return bool(decoding or prefilling)

    def _decode(self, runs: list[RunningRequest]) -> None:
        begin, num_filled = time.monotonic(), runs[0].num_filled
        num_rows = sum(len(run.rows) for run in runs)
        for run, error in self._ready.model_runner.decode(runs).items():
            run.request.fail(error)
            self._leave(run)
        num_steps = max(1, runs[0].num_filled - num_filled)
        self._delivery.begin(len(runs), num_steps)
        self._meter.add(num_rows, num_steps, time.monotonic() - begin)

    def _prepare_window(self, run: RunningRequest, preparation: Future[WindowInputs]) -> None:
        run.preparation = preparation
        preparation.add_done_callback(lambda _: self._wake.set())

    def _begin_window(self, run: RunningRequest) -> None:
        assert run.preparation is not None
        run.begin_window(run.preparation.result(), self._ready.model_runner.pattern)
        self._ready.start(run.request, run.num_output_frames)
        while len(run.slots) > len(run.rows):  # without guidance one row is enough
            self.scheduler.give_back(run.slots.pop())
        self._ready.model_runner.begin(run)

    def _postprocess(self) -> None:
        """Hand complete frames to the codec; end windows and requests."""
        for run in list(self._running):
            if run.preparation is not None:
                continue
            done = run.is_window_done
            last = done and run.next_window is None
            codes = run.take_codes(0 if done else self._delivery.min_frames(run.num_delivered))
            if last:
                self._draining.add(run)
                self._leave(run)
            if codes is not None:
                self._codec.put(run, codes, last)
            if done and run.next_window is not None:
                later = self._preparation.submit(self._ready.preparer.later, run.params, run.next_window)
                self._prepare_window(run, later)

    def _drained(self, run: RunningRequest) -> None:
        """Take note that a request is over; in the codec's thread."""
        self._draining.discard(run)
        self._wake.set()

    def _leave(self, run: RunningRequest) -> None:
        self._running.remove(run)
        if run.preparation is not None:
            run.preparation.cancel()  # unless it has begun: who comes next must not wait for what nobody wants
        self._ready.model_runner.release(run)
        self.scheduler.leave(run.slots)

    def _end_stopped(self, request: EngineRequest) -> None:
        try:
            request.raise_if_stopped()
        except AudioCraftError as error:
            request.fail(error)

    @contextmanager
    def _failing_alone(self, run: RunningRequest) -> Iterator[None]:
        """End only this request when its own part of a step fails."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            run.request.fail(as_request_error(error))
            self._leave(run)

    def _has_work(self) -> bool:
        return bool(self._running or self._draining or self.scheduler.num_waiting)

    def _fail_all(self, error: AudioCraftError) -> None:
        """Answer every waiter: the model did not load, or the loop itself broke."""
        for request in [run.request for run in [*self._running, *self._draining]] + self.scheduler.take_waiting():
            request.fail(error)
        self._running.clear()
        self._draining.clear()
        self.scheduler.close()
        self._discard()  # whatever state it is in

    def _prepare(self, model: LoadedModel) -> ModelExecutor:
        """Prepare weights and cache once for each loaded model."""
        from audiocraft_api.engine.executor import prepare

        # Takes seconds, so not under the lock: `drop` keeps off while there is a thread.
        self._is_dropped = False
        if self._prepared is None or self._prepared.model is not model:
            self._discard()
            self._prepared = prepare(model, self._config, self._make_stepper)
        return self._prepared

    def _discard(self) -> None:
        if self._prepared is not None:
            self._prepared.model_runner.close()
            self._cache.evict(self._prepared.model)
            self._prepared = None

    @property
    def _ready(self) -> ModelExecutor:
        assert self._prepared is not None
        return self._prepared
