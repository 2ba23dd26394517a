"""Audio that is sent as it is generated: the blocks of one generation, encoded as they arrive.

A slow client does not delay other requests: blocks wait in their request, which stores at most the whole audio, and are
encoded when the client is ready for them. Knows the encoder, and neither the engine nor HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from audiocraft_api.audio.convert import ALL_FORMATS, AudioFormat
from audiocraft_api.audio.finishing import Fader
from audiocraft_api.audio.stream_encoding import StreamEncoder, open_encoder
from audiocraft_api.core.engine import QueuePlace
from audiocraft_api.core.params import Waveform
from audiocraft_api.core.request import AudioInfo, EngineRequest
from audiocraft_api.generation.continuation import seconds_left_out, without_input
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.generation.submission import Submission

# How often a thread that waits for audio checks whether its client is connected and ffmpeg has written output.
POLL_SECONDS = 0.05


class AudioStream:
    """The encoded audio of one generation. For one thread and one pass; always `close` it."""

    def __init__(
        self,
        submission: Submission,
        encode_timeout_seconds: float,
        queue_place: Callable[[EngineRequest], QueuePlace | None],
    ) -> None:
        self.submission = submission
        self._queue_place = queue_place
        self.format: AudioFormat = ALL_FORMATS[submission.command.output_format]
        self._encode_timeout_seconds = encode_timeout_seconds
        self._encoder: StreamEncoder | None = None
        self._fader: Fader | None = None
        self._num_skipped = 0  # samples of the audio to continue, which the client does not want

    @property
    def outline(self) -> AudioInfo | None:
        """The properties of the audio; None until decoding starts, set when the first non-empty piece is yielded."""
        return self.submission.request.audio_info

    @property
    def num_samples(self) -> int:
        """Samples per channel before encoding, set when the first non-empty piece is yielded."""
        return self._known_outline().num_samples - self._num_left_out

    @property
    def sample_rate(self) -> int:
        """The sample rate of the encoded audio in Hz, set when the first non-empty piece is yielded."""
        return self.format.sample_rate or self._known_outline().sample_rate

    @property
    def progress(self) -> tuple[int, int]:
        """Frames done and frames in total."""
        return self.submission.request.progress

    @property
    def queue_place(self) -> QueuePlace | None:
        """Where the generation waits for others; None once it has begun."""
        return self._queue_place(self.submission.request)

    def pieces(self) -> Iterator[bytes]:
        """Yield encoded audio as it is generated, and an empty piece every `POLL_SECONDS` while there is none.

        Joined, the pieces are the whole audio. Raises the error that ended the generation, ConversionFailed, or, if the
        client reads too slowly, DeadlineExceeded.
        """
        request = self.submission.request
        for block in request.chunks(POLL_SECONDS):
            request.raise_if_stopped()
            block = self._without_input(block)
            if self._encoder is None and block.size:
                self._encoder = self._open_encoder(block.shape[0])
                finishing = self.submission.command.finishing
                self._fader = Fader(finishing, self.num_samples, self._known_outline().sample_rate)
            if self._fader and block.size:
                block = self._fader.feed(block)
            yield self._encoder.feed(block) if self._encoder else b""
        assert self._encoder is not None
        yield self._encoder.finish()

    def recipe(self) -> Recipe:
        """Return the recipe of the audio; call it after the last piece."""
        return self.submission.recipe(without_input(self.submission.request.result(), self.submission.command))

    def close(self) -> None:
        """Cancel the generation if it is still running, and close the encoder."""
        self.submission.request.cancel()
        if self._encoder is not None:
            self._encoder.close()

    @property
    def _num_left_out(self) -> int:
        return round(seconds_left_out(self.submission.command) * self._known_outline().sample_rate)

    def _without_input(self, block: Waveform) -> Waveform:
        """Return what the client wants of a block."""
        if not block.size or not self.submission.command.audio_prompt:
            return block
        num_skipped = min(self._num_left_out - self._num_skipped, block.shape[1])
        self._num_skipped += num_skipped
        return block[:, num_skipped:]

    def _open_encoder(self, num_channels: int) -> StreamEncoder:
        outline = self._known_outline()
        return open_encoder(
            self.format.name, num_channels, outline.sample_rate, self.num_samples, self._encode_timeout_seconds
        )

    def _known_outline(self) -> AudioInfo:
        assert self.outline is not None
        return self.outline
