"""Audio that is sent as it is generated: the blocks of one generation, encoded as they arrive.

A slow client does not delay other requests: blocks wait in their request, which stores at most the whole audio, and are
encoded when the client is ready for them. Knows the encoder, and neither the engine nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator

from audiocraft_api.audio.convert import FORMATS, AudioFormat
from audiocraft_api.audio.stream_encoding import StreamEncoder, open_encoder
from audiocraft_api.core.request import AudioInfo
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.generation.submission import Submission

# How often a thread that waits for audio checks whether its client is connected and ffmpeg has written output.
POLL_SECONDS = 0.05


class AudioStream:
    """The encoded audio of one generation. For one thread and one pass; always `close` it."""

    def __init__(self, submission: Submission, encode_timeout_seconds: float) -> None:
        self.submission = submission
        self.format: AudioFormat = FORMATS[submission.command.output_format]
        self._encode_timeout_seconds = encode_timeout_seconds
        self._encoder: StreamEncoder | None = None

    @property
    def outline(self) -> AudioInfo | None:
        """The properties of the audio; None until decoding starts, set when the first non-empty piece is yielded."""
        return self.submission.request.audio_info

    @property
    def sample_rate(self) -> int:
        """The sample rate of the encoded audio in Hz, set when the first non-empty piece is yielded."""
        return self.format.sample_rate or self._known_outline().sample_rate

    @property
    def progress(self) -> tuple[int, int]:
        """Frames done and frames in total."""
        return self.submission.request.progress

    def pieces(self) -> Iterator[bytes]:
        """Yield encoded audio as it is generated, and an empty piece every `POLL_SECONDS` while there is none.

        Joined, the pieces are the whole audio. Raises the error that ended the generation, ConversionFailed, or, if the
        client reads too slowly, DeadlineExceeded.
        """
        request = self.submission.request
        for block in request.chunks(POLL_SECONDS):
            request.raise_if_stopped()
            if self._encoder is None and block.size:
                self._encoder = self._open_encoder(block.shape[0])
            yield self._encoder.feed(block) if self._encoder else b""
        assert self._encoder is not None
        yield self._encoder.finish()

    def recipe(self) -> Recipe:
        """Return the recipe of the audio; call it after the last piece."""
        return self.submission.recipe(self.submission.request.result())

    def close(self) -> None:
        """Cancel the generation if it is still running, and close the encoder."""
        self.submission.request.cancel()
        if self._encoder is not None:
            self._encoder.close()

    def _open_encoder(self, num_channels: int) -> StreamEncoder:
        outline = self._known_outline()
        return open_encoder(
            self.format.name, num_channels, outline.sample_rate, outline.num_samples, self._encode_timeout_seconds
        )

    def _known_outline(self) -> AudioInfo:
        assert self.outline is not None
        return self.outline
