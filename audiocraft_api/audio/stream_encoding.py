"""Encoders that accept a waveform block by block and return encoded audio at once, for audio sent as it is generated.

Their joined output decodes to the same samples as the file that `convert.encode` makes of the whole waveform, except
that AAC starts with the encoder delay (32 ms): a file's header makes players skip it, but a stream has no such header.
Knows nothing of requests. An encoder is not thread-safe.
"""

from __future__ import annotations

import io
import logging
import os
import selectors
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import Protocol

import numpy as np
import soundfile

from audiocraft_api.audio import convert, mp3_header
from audiocraft_api.audio.convert import ALL_FORMATS, AudioFormat
from audiocraft_api.core.errors import ConversionFailed
from audiocraft_api.core.params import Waveform

READ_BYTES = 65_536

logger = logging.getLogger(__name__)


class StreamEncoder(Protocol):
    """Encodes one stream. All methods but `close` raise ConversionFailed."""

    def feed(self, block: Waveform) -> bytes:
        """Encode the next block [C, t], t ≥ 0, and return the audio that is ready, which may be empty."""

    def finish(self) -> bytes:
        """Return the rest of the audio, after the last block."""

    def close(self) -> None:
        """Release all resources. Can be called at any time, and repeatedly."""


def open_encoder(
    output_format: str, num_channels: int, sample_rate: int, num_samples: int, timeout_seconds: float
) -> StreamEncoder:
    """Open an encoder for `num_samples` per channel at `sample_rate` Hz in one of `convert.ALL_FORMATS`.

    `timeout_seconds` limits how long ffmpeg may spend on one block. Raises ConversionFailed.
    """
    audio_format = ALL_FORMATS[output_format]
    if audio_format.arguments:
        return FfmpegEncoder(audio_format, num_channels, sample_rate, num_samples, timeout_seconds)
    if audio_format.container == "WAV":
        return WavEncoder(audio_format, num_channels, sample_rate, num_samples)
    return LibsndfileEncoder(audio_format, num_channels, sample_rate, num_samples)


def open_endless_opus(num_channels: int, sample_rate: int, timeout_seconds: float) -> StreamEncoder:
    """Open an encoder for Ogg Opus of unknown length. Otherwise as `open_encoder`."""
    return FfmpegEncoder(ALL_FORMATS["opus"], num_channels, sample_rate, None, timeout_seconds)


class WavEncoder:
    """WAV. The header states the length in advance."""

    def __init__(self, audio_format: AudioFormat, num_channels: int, sample_rate: int, num_samples: int) -> None:
        self._format = audio_format
        self._sample_rate = sample_rate
        self._header = _wav_header(audio_format, num_channels, sample_rate, num_samples)
        self._padding = b"\0" * (_wav_data_bytes(audio_format, num_channels, num_samples) % 2)

    def feed(self, block: Waveform) -> bytes:
        if not block.size:
            return b""
        convert.validate_waveform(block, self._sample_rate)
        data = io.BytesIO()
        samples = convert.to_libsndfile_samples(block, self._format)
        soundfile.write(data, samples, self._sample_rate, self._format.subtype, endian="LITTLE", format="RAW")
        header, self._header = self._header, b""
        return header + data.getvalue()

    def finish(self) -> bytes:
        return self._padding

    def close(self) -> None: ...


class LibsndfileEncoder:
    """FLAC and Ogg Vorbis."""

    def __init__(self, audio_format: AudioFormat, num_channels: int, sample_rate: int, num_samples: int) -> None:
        self._format = audio_format
        self._sample_rate = sample_rate
        self._num_samples = num_samples
        self._file = io.BytesIO()
        self._num_sent = 0
        self._pending = np.zeros((num_channels, 0), np.float32)  # less than one write
        self._encoder = convert.open_libsndfile(self._file, num_channels, sample_rate, audio_format)

    def feed(self, block: Waveform) -> bytes:
        if not block.size:
            return b""
        convert.validate_waveform(block, self._sample_rate)
        self._pending = np.concatenate((self._pending, block), axis=1)
        length = convert.write_length(self._sample_rate)
        while self._pending.shape[1] >= length:
            self._write(length)
        return self._new_bytes()

    def finish(self) -> bytes:
        if self._pending.size:
            self._write(self._pending.shape[1])
        self._encoder.close()  # rewrites FLAC's header, which has been sent already
        return self._new_bytes()

    def close(self) -> None:
        self._encoder.close()

    def _write(self, length: int) -> None:
        block, self._pending = self._pending[:, :length], self._pending[:, length:]
        self._encoder.write(convert.to_libsndfile_samples(block, self._format))

    def _new_bytes(self) -> bytes:
        with self._file.getbuffer() as written:  # copies the new bytes only
            encoded = bytes(written[self._num_sent :])
        if not self._num_sent and self._format.container == "FLAC" and encoded:
            encoded = _with_flac_length(encoded, self._num_samples)
        self._num_sent += len(encoded)
        return encoded


class FfmpegEncoder:
    """ffmpeg's formats, encoded by a child process that lives as long as the stream.

    Both pipes are polled at once, so neither process blocks on the other, and the pipes bound what ffmpeg buffers.
    `feed` returns the output that is ready, without waiting for the output of its own block.
    """

    def __init__(
        self,
        audio_format: AudioFormat,
        num_channels: int,
        sample_rate: int,
        num_samples: int | None,
        timeout_seconds: float,
    ) -> None:
        self._format = audio_format
        self._sample_rate = sample_rate
        self._num_samples = num_samples
        self._has_output = False
        self._timeout_seconds = timeout_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that is never read could fill up and block
        try:
            self._process = _start_ffmpeg(audio_format, num_channels, sample_rate, num_samples, self._errors.fileno())
        except (OSError, RuntimeError) as error:
            self._errors.close()
            logger.error("ffmpeg did not start: %s", error)
            raise ConversionFailed(f"The audio could not be converted to {audio_format.name}.") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._reading, self._both = selectors.DefaultSelector(), selectors.DefaultSelector()
        for selector in (self._reading, self._both):
            selector.register(self._output, selectors.EVENT_READ)
        self._both.register(self._input, selectors.EVENT_WRITE)
        for pipe in (self._input, self._output):
            os.set_blocking(pipe, False)

    def feed(self, block: Waveform) -> bytes:
        if not block.size:
            return self._with_first_frame(self._read_ready())
        convert.validate_waveform(block, self._sample_rate)
        encoded = bytearray()
        rest = memoryview(convert.pcm16(block).tobytes())
        deadline = time.monotonic() + self._timeout_seconds
        try:
            while rest:
                for pipe in self._wait(self._both, deadline):
                    if pipe == self._input:
                        rest = rest[os.write(pipe, rest) :]
                    elif not (read := os.read(pipe, READ_BYTES)):
                        raise BrokenPipeError("ffmpeg ended early")
                    else:
                        encoded += read
        except OSError as error:
            raise self._failure(error) from error
        return self._with_first_frame(bytes(encoded) + self._read_ready())

    def finish(self) -> bytes:
        encoded = bytearray()
        deadline = time.monotonic() + self._timeout_seconds
        self._close_input()
        try:
            while self._wait(self._reading, deadline) and (read := os.read(self._output, READ_BYTES)):
                encoded += read
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
            if status:
                raise OSError(f"ffmpeg ended with status {status}")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failure(error) from error
        return self._with_first_frame(bytes(encoded))

    def close(self) -> None:
        if self._errors.closed:
            return
        self._process.kill()
        self._process.wait()
        self._close_input()
        for file in (self._process.stdout, self._reading, self._both, self._errors):
            assert file is not None
            file.close()

    def _with_first_frame(self, encoded: bytes) -> bytes:
        """Prepend MP3's length frame to the first output."""
        if self._has_output or not encoded:
            return encoded
        self._has_output = True
        if self._format.name == "mp3" and self._num_samples is not None:
            return mp3_header.length_frame(encoded[:4], self._num_samples) + encoded
        return encoded

    def _read_ready(self) -> bytes:
        encoded = bytearray()
        with suppress(BlockingIOError):
            while read := os.read(self._output, READ_BYTES):
                encoded += read
        return bytes(encoded)

    def _wait(self, selector: selectors.BaseSelector, deadline: float) -> list[int]:
        """Return the descriptors of the pipes that are ready. Raises TimeoutError."""
        ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
        if not ready:
            raise TimeoutError(f"ffmpeg spent more than {self._timeout_seconds:g} s on a block")
        return ready

    def _close_input(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        if not stdin.closed:
            self._both.unregister(self._input)
            stdin.close()

    def _failure(self, error: Exception) -> ConversionFailed:
        self._errors.seek(0)
        logger.error("Streaming as %s failed: %s %s", self._format.name, error, self._errors.read(2000))
        return ConversionFailed(f"The audio could not be converted to {self._format.name}.")


def _start_ffmpeg(
    audio_format: AudioFormat, num_channels: int, sample_rate: int, num_samples: int | None, errors: int
) -> subprocess.Popen[bytes]:
    command = [convert.ffmpeg_executable(), "-nostdin", "-hide_banner", "-loglevel", "error"]
    command += ["-probesize", "32", "-analyzeduration", "0", "-fflags", "nobuffer"]  # no input buffering
    command += ["-f", "s16le", "-ar", str(sample_rate), "-ac", str(num_channels), "-i", "pipe:0"]
    if num_samples is not None:  # otherwise the codec's own resampler; padding needs the length
        command += convert.resampling(audio_format, num_samples, sample_rate)
    command += ["-flush_packets", "1", *(audio_format.stream_arguments or audio_format.arguments), "pipe:1"]
    return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)


_WAV_SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}


def _wav_data_bytes(audio_format: AudioFormat, num_channels: int, num_samples: int) -> int:
    return num_samples * num_channels * _WAV_SAMPLE_BYTES[audio_format.subtype]


def _wav_header(audio_format: AudioFormat, num_channels: int, sample_rate: int, num_samples: int) -> bytes:
    sample_bytes = _WAV_SAMPLE_BYTES[audio_format.subtype]
    is_float = audio_format.subtype == "FLOAT"
    frame_bytes = num_channels * sample_bytes
    layout = struct.pack(
        "<HHIIHH",
        3 if is_float else 1,
        num_channels,
        sample_rate,
        sample_rate * frame_bytes,
        frame_bytes,
        8 * sample_bytes,
    )
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout
    if is_float:
        chunks += b"fact" + struct.pack("<II", 4, num_samples)
    data_bytes = _wav_data_bytes(audio_format, num_channels, num_samples)
    chunks += b"data" + struct.pack("<I", data_bytes)
    # An odd number of bytes is padded, which the file's size includes and the chunk's does not.
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + data_bytes + data_bytes % 2) + b"WAVE" + chunks


def _with_flac_length(beginning: bytes, num_samples: int) -> bytes:
    """Write the number of samples into FLAC's STREAMINFO block: 36 bits (RFC 9639, 8.2) that are 0 in `beginning`.

    Players do not need it, but libsndfile treats a stream of unknown length as endless.
    """
    field = int.from_bytes(beginning[18:26], "big") | num_samples
    return beginning[:18] + field.to_bytes(8, "big") + beginning[26:]
