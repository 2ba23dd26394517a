"""Audio that is heard while it is made: the blocks of one generation, encoded as they come.

The door beside the file: it runs the steps of `GenerationService` but for the store. Nothing is held up by a slow
listener: blocks wait in their request, which is as long as the audio, and are encoded when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from audiocraft_api.audio.convert import FORMATS, AudioFormat
from audiocraft_api.audio.stream_encoding import StreamEncoder, open_encoder
from audiocraft_api.config import Config
from audiocraft_api.core.request import AudioInfo
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.generation.service import GenerationService, Submission

# How often somebody who waits for audio may look after the listener, and after what ffmpeg has ready.
BEAT_SECONDS = 0.05


class AudioStream:
    """The encoded audio of one generation. For one thread, once; `close` it in any case."""

    def __init__(self, submission: Submission, generation: GenerationService, timeout_seconds: float) -> None:
        self.submission = submission
        self.format: AudioFormat = FORMATS[submission.command.output_format]
        self._generation = generation
        self._timeout_seconds = timeout_seconds
        self._encoder: StreamEncoder | None = None

    @property
    def outline(self) -> AudioInfo | None:
        """What the audio will be; known from the first piece that is not empty."""
        return self.submission.request.outline

    @property
    def sample_rate(self) -> int:
        """Hz of the encoded audio, from its first piece."""
        return self.format.sample_rate or self._begun().sample_rate

    @property
    def progress(self) -> tuple[int, int]:
        """Frames done of frames to do."""
        return self.submission.request.progress

    def pieces(self) -> Iterator[bytes]:
        """Yield the audio as it is made, and an empty piece at least every `BEAT_SECONDS` while there is none.

        Joined they are the whole audio. Raises what ended the generation, ConversionFailed, and DeadlineExceeded also
        when the listener is too slow.
        """
        request = self.submission.request
        for block in request.chunks(BEAT_SECONDS):
            request.check()
            if self._encoder is None and block.size:
                self._encoder = self._open(block.shape[0])
            yield self._encoder.feed(block) if self._encoder else b""
        assert self._encoder is not None
        yield self._encoder.finish()

    def recipe(self) -> Recipe:
        """Tell what was made, after the last piece."""
        return self._generation.recipe(self.submission, self.submission.request.result())

    def close(self) -> None:
        """Stop the generation unless it is over, and let go of the encoder."""
        self.submission.request.cancel()
        if self._encoder is not None:
            self._encoder.close()

    def _open(self, num_channels: int) -> StreamEncoder:
        outline = self._begun()
        return open_encoder(
            self.format.name, num_channels, outline.sample_rate, outline.num_samples, self._timeout_seconds
        )

    def _begun(self) -> AudioInfo:
        assert self.outline is not None
        return self.outline


class StreamingService:
    """Begins streams."""

    def __init__(self, generation: GenerationService, config: Config) -> None:
        self._generation = generation
        self._timeout_seconds = config.audio.convert_timeout_seconds

    def open(self, command: GenerateCommand) -> AudioStream:
        """Hand a command to the engine. Raises QueueFull, ShuttingDown."""
        return AudioStream(self._generation.submit(command), self._generation, self._timeout_seconds)
