"""Where the audio of a live session goes: a WAV file, or standard output."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

from audiocraft_api_client._requests import whole_file
from audiocraft_api_client.cli import standard_output
from audiocraft_api_client.models import StartedAnswer

HEADER_BYTES = 44
UNKNOWN_BYTES = 0xFFFFFFFF  # players then read until the end


class Sink(Protocol):
    """Takes 16-bit samples, block by block."""

    def write(self, block: bytes) -> object: ...

    def seek_back(self, frame: int, /) -> None:
        """Drop the audio from a frame on, as far as that is possible."""


class StandardOutput:
    """Writes WAV of unknown length to standard output. What was written cannot be taken back."""

    def write(self, block: bytes) -> None:
        standard_output.write(block)

    def seek_back(self, _frame: int) -> None:
        pass


class WaveFile:
    """Writes a WAV file."""

    def __init__(self, file: BinaryIO, frame_bytes: int) -> None:
        self._file = file
        self._frame_bytes = frame_bytes

    def write(self, block: bytes) -> None:
        self._file.write(block)

    def seek_back(self, frame: int) -> None:
        self._file.seek(HEADER_BYTES + frame * self._frame_bytes)
        self._file.truncate()


@contextmanager
def open_standard_output(started: StartedAnswer) -> Iterator[StandardOutput]:
    sink = StandardOutput()
    sink.write(_header(started, UNKNOWN_BYTES))
    yield sink


@contextmanager
def open_wave_file(path: str, started: StartedAnswer) -> Iterator[WaveFile]:
    """Open a WAV file that appears under its name when it is complete."""
    with whole_file(path) as file:
        file.write(_header(started, 0))
        yield WaveFile(file, _frame_bytes(started))
        num_bytes = file.tell() - HEADER_BYTES
        file.seek(0)
        file.write(_header(started, num_bytes))


def _frame_bytes(started: StartedAnswer) -> int:
    return started.sample_rate // started.frame_rate * started.channels * 2


def _header(started: StartedAnswer, num_bytes: int) -> bytes:
    """Return the header of a WAV file with 16-bit samples."""
    block = started.channels * 2
    riff_bytes = min(num_bytes + HEADER_BYTES - 8, UNKNOWN_BYTES)
    rate = started.sample_rate
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, started.channels, rate, rate * block, block, 16)
    return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", num_bytes)
