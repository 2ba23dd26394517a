"""One live session: a request that is steered, its audio, and the messages that its client gets.

Knows the fields of the messages, and neither sockets nor Flask. For one thread. The music is generated as far as the
listener needs it (`playback.py`); everything that the client changes becomes a change of the performance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiocraft_api.audio.convert import pcm16
from audiocraft_api.audio.resampled_pcm import ResampledPcm
from audiocraft_api.audio.stream_encoding import StreamEncoder, open_endless_opus
from audiocraft_api.core.constants import DEFAULT_EXTEND_STRIDE_SECONDS, FRAME_RATE, MAX_LIVE_CHANGES
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import AudioCraftError, InvalidRequest
from audiocraft_api.core.live_request import Draft, LiveRequest, Outcome
from audiocraft_api.core.params import GenerationParams, Waveform
from audiocraft_api.core.performance import Change, Controls, Performance
from audiocraft_api.core.request import AudioInfo
from audiocraft_api.live.playback import Clock, Playback

SECONDS_BETWEEN_STOPS = 0.05
MAX_PENDING_CHANGES = 16  # that wait for their frame; a client that steers by hand has one or two
PCM, STEREO_48K = "pcm", "stereo_48k"
OUTPUT_RATE = 48_000  # Hz, of the formats that are resampled: all but `pcm`
Message = dict[str, Any]


@dataclass(frozen=True)
class LiveStart:
    """How a session begins, with everything resolved."""

    model: str
    seed: int
    controls: Controls
    max_frames: int
    lead_frames: int
    # `pcm` and `stereo_48k`: 16-bit samples, little-endian and interleaved; or `opus`
    output_format: str = PCM
    extend_stride_seconds: float = DEFAULT_EXTEND_STRIDE_SECONDS


class LiveSession:
    """A running session. Always `close` it."""

    def __init__(
        self, engine: Engine, start: LiveStart, *, encode_timeout_seconds: float, clock: Clock = time.monotonic
    ) -> None:
        """Submit the request. Raises QueueFull, ShuttingDown, NotStreamable."""
        self._engine, self._start, self._clock = engine, start, clock
        self._encode_timeout_seconds = encode_timeout_seconds
        self.controls = start.controls  # after all changes, with or without a frame
        self.playback = Playback(start.lead_frames, clock)
        self.info: AudioInfo | None = None
        self._first_new_frame = 0
        self._request = self._submit((Change(0, start.controls),))
        self._encoder: StreamEncoder | None = None
        self._num_samples_to_skip = 0  # of audio that was sent before a seek
        self._seeks: list[Any] = []  # tags to answer before the audio of `_first_new_frame`
        self._drafts: list[Draft] = []  # changes that were not answered yet
        self._answers: list[Message] = []  # to send next
        self._num_samples_sent = 0
        self._num_frames_before = 0  # made by requests that ended with a seek
        self._was_dry = True
        self._has_played = False
        self._measured_from: tuple[float, int] | None = None
        self._unheard: list[tuple[int, float]] = []  # frames of changes that were not played yet, and when they came
        self.change_seconds: list[float] = []  # from each change to its playback
        self.num_underruns = 0
        self._is_stopping = False
        self.has_ended = False

    @property
    def num_frames(self) -> int:
        """Length of the performance so far."""
        return self._request.num_frames_done

    @property
    def num_frames_made(self) -> int:
        """Frames generated, including those that were taken back."""
        return self._num_frames_before + max(0, self.num_frames - self._first_new_frame)

    @property
    def performance(self) -> Performance:
        """The performance so far."""
        changes = tuple(change for change in self._request.changes if change.frame < max(1, self.num_frames))
        return Performance(changes, self.num_frames)

    def change(self, controls: Controls, transition_seconds: float, tag: Any, *, resets_context: bool = False) -> None:
        """Ask for other controls; a message with the tag says from which frame they hold. Raises InvalidRequest."""
        if self._request.num_drafts >= MAX_PENDING_CHANGES:
            raise InvalidRequest("Too many changes are waiting to be applied. Send fewer changes.")
        if len(self._request.changes) >= MAX_LIVE_CHANGES:
            raise InvalidRequest(f"A performance has at most {MAX_LIVE_CHANGES} changes. Start a new session.")
        self.controls = controls
        draft = Draft(controls, round(transition_seconds * FRAME_RATE), resets_context, (tag, self._clock()))
        self._drafts.append(draft)
        self._request.change(draft)

    def play(self) -> int:
        """Let the music go on; return the frame from which it does."""
        self.playback.play()
        return self.playback.position

    def pause(self) -> int:
        """Stop generating once the lead is complete; return the frame that is heard."""
        self.playback.pause()
        return self.playback.position

    def seek_back(self, frame: int, controls: Controls | None, tag: Any) -> None:
        """Forget the performance from a frame on, and go on from there, with other controls if given.

        The other controls include changes that have no frame yet. Without other controls, such changes are rejected.

        The engine generates everything before the frame again; what was sent of it is not sent again. A message with
        the tag precedes the audio of the frame. Raises InvalidRequest, and as the constructor.
        """
        last_frame = max(self.num_frames, self._request.changes[-1].frame + 1)  # a change may wait for its frame
        if self.info is None or not 0 < frame <= last_frame:
            raise InvalidRequest("position must be within the music that was generated, and after its beginning.")
        _, outcomes = self._request.take(0)
        self._answers += map(self._message_of, outcomes)
        kept = [change for change in self._request.changes if change.frame < frame]
        if controls is not None:
            resets_context = any(draft.resets_context for draft in self._drafts)
            kept.append(Change(frame, controls, resets_context=resets_context))
        made = self.num_frames_made
        self._request.cancel()
        self._request = self._submit(tuple(kept))
        self._num_frames_before, self._first_new_frame = made, frame
        self.controls = kept[-1].controls
        for waiting, _ in (draft.tag for draft in self._drafts):
            if controls is None:
                error = InvalidRequest("The music went back before this change was applied.")
                self._answers.append({"type": "rejected", "to": waiting, "error": error})
            else:
                self._seeks.append(waiting)
        self._drafts.clear()
        self._seeks.append(tag)
        if self._num_samples_sent >= self._samples(frame):
            self._num_samples_sent = self._samples(frame)
            self.playback.seek(frame)
            self._unheard.clear()
        else:  # the listener keeps all that was sent
            self._unheard = [(change, asked) for change, asked in self._unheard if change < frame]
        self._num_samples_to_skip = self._num_samples_sent
        self._was_dry, self._has_played, self._measured_from = True, False, None

    def stop(self, *, at_once: bool = False) -> None:
        """End the performance with the frames that are complete, those before a seek included unless `at_once`."""
        self._is_stopping = True
        if at_once or self.num_frames >= self._first_new_frame:
            self._request.stop()

    def abandon(self) -> None:
        """Stop, and wait until the performance is complete; discard its audio and messages, and the error it may raise.

        Music before a seek that was not generated again yet is generated first.
        """
        while not self._request.has_ended:
            self.stop()
            self._request.allow(self._first_new_frame)
            with suppress(AudioCraftError):
                self._request.take(SECONDS_BETWEEN_STOPS)

    def close(self) -> None:
        """Cancel the request if it has not ended, and close the encoder."""
        self._request.cancel()
        if self._encoder is not None:
            self._encoder.close()

    def poll(self, timeout_seconds: float) -> Iterator[bytes | Message]:
        """Yield audio and messages; wait for `timeout_seconds` if there are none. Raises the error that ended it."""
        if self._is_stopping:
            self.stop()
        self._request.allow(max(self.playback.num_frames_allowed, self._first_new_frame + self._start.lead_frames))
        has_ended = self._request.has_ended
        blocks, outcomes = self._request.take(timeout_seconds)
        if self.info is None and self._request.audio_info is not None:
            self.info = self._request.audio_info
        if blocks and self._encoder is None and self._start.output_format != PCM:
            self._encoder = self._open_encoder(len(blocks[0]))
        yield from self.answers()
        yield from map(self._message_of, outcomes)
        for block in blocks:
            num_samples_before = self._num_samples_to_skip + self._num_samples_until_seek
            for part in np.split(block, [num_samples_before], axis=1):
                if audio := self._encode(part):
                    yield audio
                yield from self.answers()
        yield from self._report_pace()
        if has_ended and not blocks and not outcomes:
            self.has_ended = True
            if self._encoder is not None:
                yield self._encoder.finish()

    def _submit(self, changes: tuple[Change, ...]) -> LiveRequest:
        start = self._start
        params = GenerationParams(
            model=start.model,
            description=start.controls.prompts[0].text,
            duration_seconds=start.max_frames / FRAME_RATE,
            seed=start.seed,
            extend_stride_seconds=start.extend_stride_seconds,
            performance=Performance(changes, start.max_frames),
        )
        request = LiveRequest(params)
        self._engine.submit_live(request)
        return request

    @property
    def _num_samples_until_seek(self) -> int:
        """Samples to send before the frame of the last seek."""
        return max(0, self._samples(self._first_new_frame) - self._num_samples_sent)

    def answers(self) -> Iterator[Message]:
        """Yield the messages that are due before more audio is sent."""
        yield from self._answers
        self._answers.clear()
        if self._seeks and not self._num_samples_until_seek:
            yield from ({"type": "applied", "to": tag, "frame": self._first_new_frame} for tag in self._seeks)
            self._seeks.clear()

    def _message_of(self, outcome: Outcome) -> Message:
        tag, asked = outcome.draft.tag
        self._drafts.remove(outcome.draft)
        if outcome.error is None:
            self._unheard.append((outcome.frame, asked))
            return {"type": "applied", "to": tag, "frame": outcome.frame}
        changes = self._request.changes
        self.controls = changes[-1].controls
        return {"type": "rejected", "to": tag, "error": outcome.error}

    def _encode(self, block: Waveform) -> bytes:
        skipped = min(self._num_samples_to_skip, block.shape[1])
        self._num_samples_to_skip -= skipped
        block = block[:, skipped:]
        if not block.shape[1]:
            return b""
        self._num_samples_sent += block.shape[1]
        assert self.info is not None
        self.playback.sent(self._num_samples_sent * FRAME_RATE // self.info.sample_rate)
        return self._encoder.feed(block) if self._encoder else pcm16(block).astype("<i2", copy=False).tobytes()

    def _report_pace(self) -> Iterator[Message]:
        """Say when playback runs dry, and when it can go on. Measure how late changes are heard."""
        now, position = self._clock(), self.playback.position
        while self._unheard and self._unheard[0][0] <= position:
            self.change_seconds.append(now - self._unheard.pop(0)[1])
        if self.playback.is_dry and not self._was_dry:
            self.num_underruns += 1
            yield {"type": "underrun", "frame": self.playback.position, "factor": self._factor(now)}
        if self._was_dry and not self.playback.is_dry:
            if self._has_played:
                yield {"type": "resumed", "frame": self.playback.position}
            self._has_played = True
            self._measured_from = (now, self.num_frames)
        self._was_dry = self.playback.is_dry

    def _factor(self, now: float) -> float:
        """Return the real-time factor since playback began or went on."""
        if self._measured_from is None or now <= self._measured_from[0]:
            return 0.0
        since, num_frames = self._measured_from
        return round((self.num_frames - num_frames) / FRAME_RATE / (now - since), 3)

    def _samples(self, frame: int) -> int:
        assert self.info is not None
        return round(frame * self.info.sample_rate / FRAME_RATE)

    def _open_encoder(self, num_channels: int) -> StreamEncoder:
        assert self.info is not None
        if self._start.output_format == STEREO_48K:
            return ResampledPcm(num_channels, self.info.sample_rate, OUTPUT_RATE)
        return open_endless_opus(num_channels, self.info.sample_rate, self._encode_timeout_seconds)
