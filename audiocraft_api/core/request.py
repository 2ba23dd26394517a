"""One request inside an engine: its state, progress, chunks and result, for both the caller and the engine.

The caller waits, reads chunks and cancels; the engine reports progress, pushes audio and ends the request. Knows
neither torch nor Flask.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from audiocraft_api.core.errors import AudioCraftError, Canceled, DeadlineExceeded
from audiocraft_api.core.params import Codes, GenerationParams, Waveform

State = Literal["waiting", "running", "finished", "aborted"]


@dataclass(frozen=True)
class AudioInfo:
    """What is known about a result when its generation starts."""

    num_frames: int
    num_samples: int  # per channel
    sample_rate: int  # Hz
    revision: str
    precision: str
    codec: str  # digest, as in `Codes`


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A finished generation: the whole waveform and how it was made."""

    waveform: Waveform  # [C, T] float32
    sample_rate: int  # Hz
    num_frames: int
    model: str
    revision: str
    precision: str
    codec: str = ""  # digest, as in `Codes`
    codes: Codes | None = None  # of the waveform, with the audio that was continued; None if the engine keeps none


@dataclass
class Timings:
    """When a request reached each stage, as `time.monotonic()`; None until it does."""

    submitted: float
    begun: float | None = None
    first_audio: float | None = None
    ended: float | None = None


class EngineRequest:
    """A submitted generation. Thread-safe. Ends exactly once: finished with a result or aborted with an error."""

    def __init__(self, params: GenerationParams, deadline: float | None = None) -> None:
        """`deadline` is a `time.monotonic()` value, or None for no limit."""
        self.params = params
        self.deadline = deadline
        self._condition = threading.Condition()
        self._state: State = "waiting"
        self._canceled = False
        self._chunks: list[Waveform] = []
        self._codes: list[npt.NDArray[np.uint16]] = []
        self._result: GenerationResult | None = None
        self._error: AudioCraftError | None = None
        self._num_frames_done = 0
        self._audio_info: AudioInfo | None = None
        self._callbacks: list[Callable[[EngineRequest], None]] = []
        self.times = Timings(submitted=time.monotonic())

    # --- the caller's side

    @property
    def state(self) -> State:
        return self._state

    @property
    def progress(self) -> tuple[int, int]:
        """Frames done and frames in total; (0, 0) until the engine has started."""
        return self._num_frames_done, 0 if self._audio_info is None else self._audio_info.num_frames

    @property
    def audio_info(self) -> AudioInfo | None:
        """The properties of the result; None until the engine has started."""
        return self._audio_info

    @property
    def has_ended(self) -> bool:
        return self._ended()

    @property
    def error(self) -> AudioCraftError | None:
        """The error that ended the request; None while it runs and when it has finished."""
        return self._error

    @property
    def should_stop(self) -> bool:
        """Whether the request was canceled or is past its deadline."""
        return self._canceled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def cancel(self) -> None:
        """Make the engine stop within one step. Has no effect on a finished request."""
        self._canceled = True

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the end of the request; return whether it has ended."""
        with self._condition:
            return self._condition.wait_for(self._ended, timeout_seconds)

    def result(self, timeout_seconds: float | None = None) -> GenerationResult:
        """Return the result, or raise the error that ended the request; TimeoutError if it has not ended."""
        if not self.wait(timeout_seconds):
            raise TimeoutError("the generation has not ended yet")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def chunks(self, beat_seconds: float | None = None) -> Iterator[Waveform]:
        """Yield blocks [C, t] as they are generated; concatenated, they are the result's waveform.

        With `beat_seconds`, also yield an empty block whenever none has been generated for that long. Raises the error
        that ended the request.
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
        """Call `callback(self)` once when the request ends, in the engine's thread, or now if it has already ended."""
        with self._condition:
            if not self._ended():
                self._callbacks.append(callback)
                return
        callback(self)

    # --- the engine's side

    def raise_if_stopped(self) -> None:
        """Raise Canceled or DeadlineExceeded if the request should stop. Engines call this before each step."""
        if self._canceled:
            raise Canceled
        if self.should_stop:
            raise DeadlineExceeded("The generation did not finish in time. Request less audio or try again later.")

    def start(
        self,
        num_frames: int,
        *,
        sample_rate: int,
        frame_rate: float,
        revision: str,
        precision: str,
        codec: str = "",
    ) -> None:
        """Mark the request as running: its result will have `num_frames`, with `frame_rate` frames per second."""
        num_samples = round(num_frames * sample_rate / frame_rate)
        with self._condition:
            if self._ended():
                return
            self._audio_info = AudioInfo(num_frames, num_samples, sample_rate, revision, precision, codec)
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

    def add_codes(self, tokens: npt.NDArray[np.uint16]) -> None:
        """Keep the next tokens [K, t] for the result. Call from one thread, before `finish`."""
        self._codes.append(tokens)

    def finish(self) -> None:
        """End the request with the pushed blocks as its result."""
        assert self._audio_info is not None
        info, waveform = self._audio_info, np.concatenate(self._chunks, axis=1)
        ends = np.cumsum([chunk.shape[1] for chunk in self._chunks])
        self._chunks = np.split(waveform, ends[:-1], axis=1)  # views: the audio is in memory once
        codes = Codes(np.concatenate(self._codes, axis=1), info.codec) if self._codes else None
        result = GenerationResult(
            waveform,
            info.sample_rate,
            info.num_frames,
            self.params.model,
            info.revision,
            info.precision,
            info.codec,
            codes,
        )
        self._end("finished", result, None)

    def fail(self, error: AudioCraftError) -> None:
        """End the request with an error; a request that has ended stays as it is."""
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
