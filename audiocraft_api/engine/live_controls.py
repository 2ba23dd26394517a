"""Applies the changes of performances between steps, and starts their windows.

Belongs to the loop's thread; contexts are computed in the thread of the inputs. A change that has a frame waits for
that frame, and the frame waits for the change's contexts. A draft gets the first frame after its contexts are computed,
so that a slow encoder delays the change and never the music.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from audiocraft_api.core.errors import Canceled, InvalidRequest
from audiocraft_api.core.performance import Change
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.core.texts import TextSchedule
from audiocraft_api.core.window import Window
from audiocraft_api.engine.executor import ModelExecutor
from audiocraft_api.engine.failures import as_request_error
from audiocraft_api.engine.live_sequence import LiveSequence, UpcomingChange
from audiocraft_api.engine.sequence import WindowInputs


class LiveControls:
    """The performances of one batch."""

    def __init__(self, executor: ModelExecutor, input_thread: ThreadPoolExecutor, wake: threading.Event) -> None:
        self._model, self._model_runner = executor.model, executor.model_runner
        self._processor = executor.input_processor
        self._input_thread = input_thread
        self._wake = wake

    def new_sequence(self, request: EngineRequest, slots: list[int]) -> LiveSequence:
        return LiveSequence(
            request,
            slots,
            self._model_runner.pattern,
            window_frames=self._model.max_window_frames,
            stride_frames=int(self._model.frame_rate * request.params.extend_stride_seconds),
        )

    def prepare_window(self, seq: LiveSequence) -> None:
        """Let the sequence wait for its next window, which `update` starts once the changes before it are applied."""
        seq.pending_inputs = Future()

    def update(self, seq: LiveSequence) -> None:
        """Apply the changes that hold from the next frame on. Raises the error that ends the request."""
        if seq.pending_inputs is not None:
            self._update_window(seq, seq.pending_inputs)
        elif not seq.is_window_done:
            self._update_frame(seq)

    def _update_frame(self, seq: LiveSequence) -> None:
        frame = seq.next_frame
        if frame >= seq.end_frame or (seq.live is not None and seq.live.is_stopping):
            if frame == 0:
                raise Canceled
            seq.cut(is_end=True)
        elif self._apply_changes(seq, frame, seq.earliest_change_frame):
            seq.cut(is_end=False)
        elif not seq.is_late and seq.use_controls_of(frame):
            self._model_runner.set_contexts(seq)

    def _update_window(self, seq: LiveSequence, inputs: Future[WindowInputs]) -> None:
        if seq.timeline is None:
            self._model.require_performance(seq.params)
        window = seq.next_window
        if inputs.done() or window is None:
            return
        first_new = window.start + window.num_prompt_frames
        if seq.live is not None and seq.live.is_stopping and first_new == 0:
            raise Canceled
        if self._apply_changes(seq, first_new, first_new):
            window = Window(first_new, 0, window.num_frames)
        if seq.is_late:
            return
        seq.use_controls_of(first_new)
        seq.follow_with(window)
        no_prompt = torch.zeros(self._model.num_codebooks, 0, dtype=torch.long)
        inputs.set_result(WindowInputs(seq.rows, [window], no_prompt, TextSchedule(seq.params, self._model.frame_rate)))

    def _apply_changes(self, seq: LiveSequence, frame: int, earliest: int) -> bool:
        """Apply the changes up to `frame`; return whether the context is reset at it.

        Drafts whose contexts are computed get the frame `earliest` or a later one.
        """
        seq.is_late, resets = False, False
        while (upcoming := self._upcoming(seq)) is not None:
            if not upcoming.has_frame and not upcoming.contexts.done():
                break
            if not upcoming.has_frame and not self._give_frame(seq, upcoming, earliest):
                continue
            if upcoming.change.frame > frame:
                break
            if not upcoming.contexts.done():
                seq.is_late = True
                break
            seq.apply(upcoming)
            resets = resets or upcoming.change.resets_context
        return resets

    def _upcoming(self, seq: LiveSequence) -> UpcomingChange | None:
        """Return the next change, and begin to compute its contexts; None if there is none."""
        if seq.upcoming is None:
            if (change := next(seq.known_changes, None)) is not None:
                seq.upcoming = UpcomingChange(change, None, self._contexts_of(seq, change), has_frame=True)
            elif seq.live is not None and (draft := seq.live.next_draft()) is not None:
                change = Change(0, draft.controls, draft.transition_frames, draft.resets_context)
                seq.upcoming = UpcomingChange(change, draft, self._contexts_of(seq, change), has_frame=False)
        return seq.upcoming

    def _contexts_of(self, seq: LiveSequence, change: Change) -> Future[dict[str, Tensor]]:
        texts = change.controls.blends.texts
        if all(text in seq.contexts for text in texts):  # the input thread may be busy with another request
            known: Future[dict[str, Tensor]] = Future()
            known.set_result({text: seq.contexts[text] for text in texts})
            return known
        contexts = self._input_thread.submit(self._processor.contexts, seq.params, texts)
        contexts.add_done_callback(lambda _: self._wake.set())
        return contexts

    def _give_frame(self, seq: LiveSequence, upcoming: UpcomingChange, earliest: int) -> bool:
        """Decide the frame of a draft; return False if the draft is rejected."""
        assert seq.live is not None
        assert seq.timeline is not None
        assert upcoming.draft is not None
        try:
            contexts = seq.contexts | upcoming.contexts.result()
            if sum(map(len, contexts.values())) > self._model_runner.max_context:
                raise InvalidRequest("The prompts are too long for this model. Use fewer or shorter ones.")
        except Exception as error:  # noqa: BLE001 - the music goes on
            seq.live.reject(upcoming.draft, as_request_error(error))
            seq.upcoming = None
            return False
        frame = max(earliest, seq.timeline.changes[-1].frame + 1)
        upcoming.change, upcoming.has_frame = replace(upcoming.change, frame=frame), True
        return True
