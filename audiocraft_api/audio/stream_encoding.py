"""Encoders that take a waveform block by block and give audio at once: what is heard while it is made.

What they give, joined, decodes to the samples of the file that `convert.encode` makes of the whole waveform. AAC alone
begins with the encoder's delay (32 ms): a file says in its header to leave it out, a stream cannot. Knows nothing of requests; one thread uses one encoder.
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
from audiocraft_api.audio.convert import FORMATS, AudioFormat
from audiocraft_api.core.errors import ConversionFailed
from audiocraft_api.core.params import Waveform

UNKNOWN = 0xFFFFFFFF  # the length in a WAV header that is written before the end is known
READ_BYTES = 65_536

logger = logging.getLogger(__name__)


class StreamEncoder(Protocol):
    """One stream. All methods but `close` raise ConversionFailed."""

    def feed(self, block: Waveform) -> bytes:
        """Take the next block [C, t], t may be 0, and return the audio that is ready, maybe none."""

    def finish(self) -> bytes:
        """Return the rest, after the last block."""

    def close(self) -> None:
        """Let go of everything; may be called at any time, and again."""


def open_encoder(
    output_format: str, num_channels: int, sample_rate: int, num_samples: int, timeout_seconds: float
) -> StreamEncoder:
    """Open an encoder for `num_samples` a channel at `sample_rate` Hz in one of `convert.FORMATS`.

    `timeout_seconds` is how long ffmpeg may take over one block. Raises ConversionFailed.
    """
    row = FORMATS[output_format]
    if row.arguments:
        return FfmpegEncoder(row, num_channels, sample_rate, num_samples, timeout_seconds)
    if row.container == "WAV":
        return WavEncoder(row, num_channels, sample_rate)
    return LibsndfileEncoder(row, num_channels, sample_rate, num_samples)


class WavEncoder:
    """WAV of unknown length."""

    def __init__(self, row: AudioFormat, num_channels: int, sample_rate: int) -> None:
        self._row = row
        self._sample_rate = sample_rate
        self._header = _wav_header(row, num_channels, sample_rate)

    def feed(self, block: Waveform) -> bytes:
        if not block.size:
            return b""
        convert.check(block, self._sample_rate)
        data = io.BytesIO()
        samples = convert.samples_of(block, self._row)
        soundfile.write(data, samples, self._sample_rate, self._row.subtype, endian="LITTLE", format="RAW")
        header, self._header = self._header, b""
        return header + data.getvalue()

    def finish(self) -> bytes:
        return b""

    def close(self) -> None: ...


class LibsndfileEncoder:
    """FLAC and Ogg Vorbis."""

    def __init__(self, row: AudioFormat, num_channels: int, sample_rate: int, num_samples: int) -> None:
        self._row = row
        self._sample_rate = sample_rate
        self._num_samples = num_samples
        self._file = io.BytesIO()
        self._num_sent = 0
        self._waiting = np.zeros((num_channels, 0), np.float32)  # less than one write
        self._encoder = convert.open_libsndfile(self._file, num_channels, sample_rate, row)

    def feed(self, block: Waveform) -> bytes:
        if not block.size:
            return b""
        convert.check(block, self._sample_rate)
        self._waiting = np.concatenate((self._waiting, block), axis=1)
        length = convert.write_length(self._sample_rate)
        while self._waiting.shape[1] >= length:
            self._write(length)
        return self._new_bytes()

    def finish(self) -> bytes:
        if self._waiting.size:
            self._write(self._waiting.shape[1])
        self._encoder.close()  # goes back to complete FLAC's header, which is sent already
        return self._new_bytes()

    def close(self) -> None:
        self._encoder.close()

    def _write(self, length: int) -> None:
        block, self._waiting = self._waiting[:, :length], self._waiting[:, length:]
        self._encoder.write(convert.samples_of(block, self._row))

    def _new_bytes(self) -> bytes:
        encoded = self._file.getvalue()[self._num_sent :]
        if not self._num_sent and self._row.container == "FLAC" and encoded:
            encoded = _with_flac_length(encoded, self._num_samples)
        self._num_sent += len(encoded)
        return encoded


class FfmpegEncoder:
    """Formats of ffmpeg, by a child that lives as long as the stream.

    Both pipes are watched at once, so that neither side ever waits for the other; what ffmpeg holds back is bounded
    by its pipes. `feed` returns what is ready, without waiting for what the block will become.
    """

    def __init__(
        self, row: AudioFormat, num_channels: int, sample_rate: int, num_samples: int, timeout_seconds: float
    ) -> None:
        self._row = row
        self._sample_rate = sample_rate
        self._num_samples = num_samples
        self._has_begun = False
        self._timeout_seconds = timeout_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads could fill up
        try:
            self._process = _start_ffmpeg(row, num_channels, sample_rate, num_samples, self._errors.fileno())
        except (OSError, RuntimeError) as error:
            self._errors.close()
            logger.error("ffmpeg did not start: %s", error)
            raise ConversionFailed(f"The audio could not be converted to {row.name}.") from error
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
            return self._begin(self._read_ready())
        convert.check(block, self._sample_rate)
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
        return self._begin(bytes(encoded) + self._read_ready())

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
        return self._begin(bytes(encoded))

    def close(self) -> None:
        if self._errors.closed:
            return
        self._process.kill()
        self._process.wait()
        self._close_input()
        for file in (self._process.stdout, self._reading, self._both, self._errors):
            assert file is not None
            file.close()

    def _begin(self, encoded: bytes) -> bytes:
        """Put MP3's first frame before the first bytes."""
        if self._has_begun or not encoded:
            return encoded
        self._has_begun = True
        if self._row.name == "mp3":
            return mp3_header.length_frame(encoded[:4], self._num_samples) + encoded
        return encoded

    def _read_ready(self) -> bytes:
        encoded = bytearray()
        with suppress(BlockingIOError):
            while read := os.read(self._output, READ_BYTES):
                encoded += read
        return bytes(encoded)

    def _wait(self, selector: selectors.BaseSelector, deadline: float) -> list[int]:
        """Return the pipes that are ready. Raises TimeoutError."""
        ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
        if not ready:
            raise TimeoutError(f"ffmpeg took more than {self._timeout_seconds:g} s over a block")
        return ready

    def _close_input(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        if not stdin.closed:
            self._both.unregister(self._input)
            stdin.close()

    def _failure(self, error: Exception) -> ConversionFailed:
        self._errors.seek(0)
        logger.error("Streaming as %s failed: %s %s", self._row.name, error, self._errors.read(2000))
        return ConversionFailed(f"The audio could not be converted to {self._row.name}.")


def _start_ffmpeg(
    row: AudioFormat, num_channels: int, sample_rate: int, num_samples: int, errors: int
) -> subprocess.Popen[bytes]:
    command = [convert.ffmpeg_executable(), "-nostdin", "-hide_banner", "-loglevel", "error"]
    command += ["-probesize", "32", "-analyzeduration", "0", "-fflags", "nobuffer"]  # begin with the first samples
    command += ["-f", "s16le", "-ar", str(sample_rate), "-ac", str(num_channels), "-i", "pipe:0"]
    command += convert.resampling(row, num_samples, sample_rate)
    command += ["-flush_packets", "1", *(row.stream_arguments or row.arguments), "pipe:1"]
    return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)


def _wav_header(row: AudioFormat, num_channels: int, sample_rate: int) -> bytes:
    sample_bytes = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[row.subtype]
    is_float = row.subtype == "FLOAT"
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
        chunks += b"fact" + struct.pack("<II", 4, UNKNOWN)
    return b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVE" + chunks + b"data" + struct.pack("<I", UNKNOWN)


def _with_flac_length(beginning: bytes, num_samples: int) -> bytes:
    """Write the number of samples into FLAC's first bytes; 36 bits of STREAMINFO (RFC 9639, 8.2), 0 until then.

    Players do without, but libsndfile takes a stream of unknown length for an endless one.
    """
    field = int.from_bytes(beginning[18:26], "big") | num_samples
    return beginning[:18] + field.to_bytes(8, "big") + beginning[26:]
