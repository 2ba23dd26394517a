"""One request inside an engine: state, progress, chunks and result, seen from both sides.

The caller waits, reads chunks and cancels; the engine advances, pushes and ends. Knows neither torch nor Flask.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from audiocraft_api.core.errors import AudioCraftError, Canceled, DeadlineExceeded
from audiocraft_api.core.params import GenerationParams, Waveform

State = Literal["waiting", "running", "finished", "aborted"]


@dataclass(frozen=True)
class AudioInfo:
    """What is known of a result when it is begun."""

    num_frames: int
    num_samples: int  # of a channel
    sample_rate: int  # Hz
    revision: str
    precision: str


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A finished generation: the whole waveform [C, T] float32 and how it came about."""

    waveform: Waveform  # [C, T]
    sample_rate: int  # Hz
    num_frames: int
    model: str
    revision: str
    precision: str


@dataclass
class Timings:
    """When things happened to a request, as `time.monotonic()`; None is not yet."""

    submitted: float
    begun: float | None = None
    first_audio: float | None = None
    ended: float | None = None


class EngineRequest:
    """A submitted generation. Thread-safe; ends exactly once, finished with a result or aborted with an error."""

    def __init__(self, params: GenerationParams, deadline: float | None = None) -> None:
        """`deadline` is a `time.monotonic()` value, or None for no limit."""
        self.params = params
        self.deadline = deadline
        self._condition = threading.Condition()
        self._state: State = "waiting"
        self._canceled = False
        self._chunks: list[Waveform] = []
        self._result: GenerationResult | None = None
        self._error: AudioCraftError | None = None
        self._num_frames_done = 0
        self._outline: AudioInfo | None = None
        self._callbacks: list[Callable[[EngineRequest], None]] = []
        self.times = Timings(submitted=time.monotonic())

    # --- the caller's side

    @property
    def state(self) -> State:
        return self._state

    @property
    def progress(self) -> tuple[int, int]:
        """Frames done of frames to do; (0, 0) until the engine has begun."""
        return self._num_frames_done, 0 if self._outline is None else self._outline.num_frames

    @property
    def outline(self) -> AudioInfo | None:
        """What the result will be; None until the engine has begun."""
        return self._outline

    @property
    def has_ended(self) -> bool:
        return self._ended()

    @property
    def error(self) -> AudioCraftError | None:
        """What ended the request; None while it goes on and when it is finished."""
        return self._error

    @property
    def should_stop(self) -> bool:
        """Say whether it was canceled or is past its deadline."""
        return self._canceled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def cancel(self) -> None:
        """Ask the engine to stop within a step. A finished request stays finished."""
        self._canceled = True

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the end; say whether it came."""
        with self._condition:
            return self._condition.wait_for(self._ended, timeout_seconds)

    def result(self, timeout_seconds: float | None = None) -> GenerationResult:
        """Return the result, or raise what ended the request; TimeoutError when it has not ended in time."""
        if not self.wait(timeout_seconds):
            raise TimeoutError("the generation has not ended yet")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def chunks(self, beat_seconds: float | None = None) -> Iterator[Waveform]:
        """Yield blocks [C, t] in order as they are made; joined they are the result's waveform. Raises what ended it.

        With `beat_seconds` there is also an empty block whenever nothing came for so long.
        """
        index = 0
        while True:
            with self._condition:
                if not self._condition.wait_for(functools.partial(self._has, index), beat_seconds):
                    chunk = np.zeros((1, 0), np.float32)
                elif index < len(self._chunks):
                    chunk = self._chunks[index]
                    index += 1
                elif self._error is not None:
                    raise self._error
                else:
                    return
            yield chunk

    def add_done_callback(self, callback: Callable[[EngineRequest], None]) -> None:
        """Call `callback(self)` once at the end, from the engine's thread, or at once when it has ended."""
        with self._condition:
            if not self._ended():
                self._callbacks.append(callback)
                return
        callback(self)

    # --- the engine's side

    def check(self) -> None:
        """Raise Canceled or DeadlineExceeded when the request should stop; engines call it before each step."""
        if self._canceled:
            raise Canceled
        if self.should_stop:
            raise DeadlineExceeded("The generation did not finish in time; ask for less audio or try again later.")

    def start(self, num_frames: int, *, sample_rate: int, frame_rate: float, revision: str, precision: str) -> None:
        """Begin a result of `num_frames`, of which there are `frame_rate` a second."""
        num_samples = round(num_frames * sample_rate / frame_rate)
        with self._condition:
            if self._ended():
                return
            self._outline = AudioInfo(num_frames, num_samples, sample_rate, revision, precision)
            self._state = "running"
            self.times.begun = self.times.begun or time.monotonic()

    def advance(self, num_frames_done: int) -> None:
        self._num_frames_done = num_frames_done

    def push(self, chunk: Waveform) -> None:
        """Deliver the next block [C, t]."""
        with self._condition:
            self._chunks.append(chunk)
            self.times.first_audio = self.times.first_audio or time.monotonic()
            self._condition.notify_all()

    def finish(self) -> None:
        """End with the pushed blocks as the result."""
        assert self._outline is not None
        outline, waveform = self._outline, np.concatenate(self._chunks, axis=1)
        result = GenerationResult(
            waveform, outline.sample_rate, outline.num_frames, self.params.model, outline.revision, outline.precision
        )
        self._end("finished", result, None)

    def fail(self, error: AudioCraftError) -> None:
        """End with an error; a request that has ended stays as it is."""
        self._end("aborted", None, error)

    def _has(self, index: int) -> bool:
        return index < len(self._chunks) or self._ended()

    def _ended(self) -> bool:
        return self._state in ("finished", "aborted")

    def _end(self, state: State, result: GenerationResult | None, error: AudioCraftError | None) -> None:
        with self._condition:
            if self._ended():
                return
            self._state, self._result, self._error = state, result, error
            self.times.ended = time.monotonic()
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        for callback in callbacks:
            callback(self)
