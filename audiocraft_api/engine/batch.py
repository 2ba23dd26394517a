"""The sequences of one model that decode together, and their steps: schedule, run, postprocess.

Belongs to the loop's thread; other threads read only the counts. Each step admits requests, advances every sequence by
one chunk or column, and queues complete frames for the codec's thread. A failing request ends without affecting others.

A request of several windows keeps its slots from window to window unless another request waits for them. Then it moves
to the end of the queue, so that a short request waits for one window of a long request, not for all of it. This costs
nothing, because every window starts with an empty cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from audiocraft_api.core.errors import AudioCraftError, ShuttingDown
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.engine.codec.batching import CodecBatching
from audiocraft_api.engine.codec.worker import CodecWorker
from audiocraft_api.engine.executor import ModelExecutor
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.live_controls import LiveControls
from audiocraft_api.engine.live_sequence import LiveSequence
from audiocraft_api.engine.loop_stats import LoopStats
from audiocraft_api.engine.scheduler import Scheduler
from audiocraft_api.engine.sequence import Sequence, TextChange, WindowInputs


class Batch:
    """The running sequences of one leased model."""

    def __init__(
        self,
        executor: ModelExecutor,
        scheduler: Scheduler,
        stats: LoopStats,
        *,
        max_draining: int,
        wake: threading.Event,
        aborting: threading.Event,
    ) -> None:
        """`max_draining` limits the requests that are decoded and only wait for the codec.

        The batch sets `wake` when the loop can advance again, because another thread has finished its part. While
        `aborting` is set, every request ends with ShuttingDown.
        """
        self._executor, self._model_runner = executor, executor.model_runner
        self._scheduler, self._stats = scheduler, stats
        self._max_draining = max_draining
        self._wake, self._aborting = wake, aborting
        self._running: list[Sequence] = []
        self._paused: dict[EngineRequest, Sequence] = {}  # wait in the queue for their next window
        self._draining: set[Sequence] = set()  # decoded; the codec has not finished them yet
        self._input_thread = ThreadPoolExecutor(1, "engine-inputs")
        device = executor.model.device
        self._live = LiveControls(executor, self._input_thread, wake)
        self._codec = CodecWorker(executor.codec, device, self._on_drained)
        self._codec_batching = CodecBatching(is_shared=device.type == "cpu")

    # --- any thread

    @property
    def num_draining(self) -> int:
        """Requests that are decoded and wait for the codec's last block."""
        return len(self._draining)

    @property
    def num_slots_used(self) -> int:
        return sum(len(seq.slots) for seq in list(self._running))

    @property
    def frames_left(self) -> list[int]:
        """Frames that each running request still has to decode."""
        return [total - done for done, total in (seq.request.progress for seq in list(self._running))]

    # --- the loop's thread

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._draining)

    def step(self) -> bool:
        """Advance all sequences once; return whether any could advance."""
        self._schedule()
        has_advanced = self._run()
        self._postprocess()
        if has_advanced:
            self._executor.finish_startup()
            self._codec.ensure_started()
        return has_advanced

    def fail_all(self, error: AudioCraftError) -> None:
        """End every request of a closed batch."""
        for seq in [*self._running, *self._draining]:
            seq.request.fail(error)
        self._running.clear()
        self._draining.clear()

    def close(self) -> None:
        """Wait for the codec to finish what it has, and stop the threads."""
        self._codec.close()
        self._input_thread.shutdown()

    def _schedule(self) -> None:
        """Remove the requests that should stop, and admit new ones."""
        if self._aborting.is_set():
            self._scheduler.fail_waiting(ShuttingDown())
            self._paused.clear()
        for request in self._scheduler.remove_stopped():
            _fail_if_stopped(request)
            self._paused.pop(request, None)
        for seq in list(self._running):
            if self._aborting.is_set():
                seq.request.fail(ShuttingDown())
            _fail_if_stopped(seq.request)
            if seq.request.has_ended:
                self._remove(seq)
        # Bounds the codec's backlog: where the codec is slower than decoding, decoding waits for it.
        if len(self._draining) >= self._max_draining:
            return
        for request, slots in self._scheduler.admit():
            if request in self._paused:
                seq = self._paused.pop(request)
                seq.slots = slots
            else:
                seq = self._new_sequence(request, slots)
            self._prepare_window(seq)
            self._running.append(seq)

    def _run(self) -> bool:
        """Advance every sequence that can advance; return whether there was one."""
        for seq in list(self._running):
            if isinstance(seq, LiveSequence):
                with self._failing_alone(seq):
                    self._live.update(seq)
        for seq in list(self._running):
            if seq.pending_inputs is not None and seq.pending_inputs.done():
                with self._failing_alone(seq):
                    self._start_window(seq, seq.pending_inputs.result())
        for seq in list(self._running):
            if seq.text_change is not None and seq.is_text_change_due and seq.text_change.rows.done():
                with self._failing_alone(seq):
                    seq.change_texts(seq.text_change.rows.result())
                    self._model_runner.set_contexts(seq)
                    self._prepare_text_change(seq)
        prefilling = [seq for seq in self._running if seq.needs_prefill]
        for seq in prefilling:
            with self._failing_alone(seq):
                self._model_runner.prefill(seq)
        decoding = [seq for seq in self._running if seq.is_decoding and seq not in prefilling]
        if decoding:
            self._decode(decoding)
        return bool(decoding or prefilling)

    def _decode(self, seqs: list[Sequence]) -> None:
        begin, num_filled = time.monotonic(), seqs[0].num_filled
        num_rows = sum(len(seq.rows) for seq in seqs)
        for seq, error in self._model_runner.decode(seqs).items():
            seq.request.fail(error)
            self._remove(seq)
        num_steps = max(1, seqs[0].num_filled - num_filled)
        self._codec_batching.count_steps(len(seqs), num_steps)
        self._stats.add_steps(num_rows, num_steps, time.monotonic() - begin)

    def _postprocess(self) -> None:
        """Queue complete frames for the codec; end windows and requests."""
        for seq in list(self._running):
            if seq.pending_inputs is not None:
                continue
            is_done, next_window = seq.is_window_done, seq.next_window
            is_last = is_done and next_window is None
            codes = seq.take_codes(0 if is_done else self._codec_batching.min_frames(seq.num_delivered))
            if is_last:
                self._draining.add(seq)
                self._remove(seq)
            if codes is not None:
                self._codec.put(seq, codes, is_last)
            if is_done and next_window is not None:
                if self._scheduler.has_blocked_requests and not seq.keeps_slots:
                    self._pause(seq)
                else:
                    self._prepare_window(seq)

    def _new_sequence(self, request: EngineRequest, slots: list[int]) -> Sequence:
        if request.params.performance is not None:
            return self._live.new_sequence(request, slots)
        return Sequence(request, slots, self._model_runner.pattern)

    def _prepare_window(self, seq: Sequence) -> None:
        """Compute the inputs of the next window in the other thread. A new sequence has no windows yet."""
        processor = self._executor.input_processor
        if isinstance(seq, LiveSequence):
            self._live.prepare_window(seq)
            return
        if seq.next_window is None:
            inputs = self._input_thread.submit(processor.first_window, seq.params)
        else:
            inputs = self._input_thread.submit(processor.later_window, seq.params, seq.next_window)
        seq.pending_inputs = inputs
        inputs.add_done_callback(lambda _: self._wake.set())

    def _pause(self, seq: Sequence) -> None:
        """Free the slots of a sequence between two windows, for the requests that wait, and queue its request again."""
        self._running.remove(seq)
        self._model_runner.release(seq)
        self._paused[seq.request] = seq
        self._scheduler.requeue(seq.request, seq.slots)

    def _start_window(self, seq: Sequence, inputs: WindowInputs) -> None:
        seq.start_window(inputs)
        self._executor.start_request(seq.request, seq.num_output_frames)
        while len(seq.slots) > len(seq.rows):  # without guidance, one row is enough
            self._scheduler.free(seq.slots.pop())
        self._model_runner.start_window(seq)
        self._prepare_text_change(seq)

    def _prepare_text_change(self, seq: Sequence) -> None:
        """Compute the rows of the next change of texts in the other thread."""
        if (found := seq.next_texts()) is not None:
            column, texts = found
            rows = self._input_thread.submit(self._executor.input_processor.rows_of, seq.params, texts)
            seq.text_change = TextChange(column, rows)
            rows.add_done_callback(lambda _: self._wake.set())

    def _on_drained(self, seq: Sequence) -> None:
        """Called in the codec's thread when a request has ended."""
        self._draining.discard(seq)
        self._wake.set()

    def _remove(self, seq: Sequence) -> None:
        self._running.remove(seq)
        if seq.pending_inputs is not None:
            seq.pending_inputs.cancel()  # succeeds unless it is running, so that the next request need not wait for it
        if seq.text_change is not None:
            seq.text_change.rows.cancel()
        self._model_runner.release(seq)
        self._scheduler.finish(seq.slots)

    @contextmanager
    def _failing_alone(self, seq: Sequence) -> Iterator[None]:
        """End only this request if its own part of a step fails."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            seq.request.fail(as_request_error(error))
            self._remove(seq)


def _fail_if_stopped(request: EngineRequest) -> None:
    """End a request that was canceled or is past its deadline."""
    try:
        request.raise_if_stopped()
    except AudioCraftError as error:
        request.fail(error)
