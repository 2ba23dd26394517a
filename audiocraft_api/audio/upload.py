"""Turns an uploaded tune into a waveform. The file is hostile until decoded: a child process with bounds decodes it.

WAV, MP3, OGG (Vorbis, Opus) and FLAC are known by their content; names and media types count for nothing. Other
content is refused here, so no playlist, description of a session or list of files reaches a decoder. A content that
is not a tune is 400 and not 415, which speaks of the request's own content type. Knows nothing of Flask or models.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from typing import Any, BinaryIO

import numpy as np

from audiocraft_api.audio import upload_decoder
from audiocraft_api.audio.upload_decoder import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, MIN_SECONDS
from audiocraft_api.config import Config
from audiocraft_api.core.errors import InvalidMelody, PayloadTooLarge, StorageUnavailable, Unavailable
from audiocraft_api.core.params import AudioInput

COPY_BYTES = 2**20

REFUSALS = {
    "unknown": "The melody is not a WAV, MP3, OGG or FLAC file.",
    "damaged": "The melody could not be decoded; the file is damaged or not what it seems to be.",
    "sample_rate": f"The melody's sample rate must be from {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,} Hz.",
    "channels": "The melody must be mono or stereo.",
    "too_short": f"The melody must be at least {MIN_SECONDS:g} seconds long.",
    "too_long": "The melody must not be longer than {max_seconds:g} seconds.",
    "too_fine": "The melody holds more samples than {max_seconds:g} seconds of 48 kHz stereo; use a lower sample rate.",
    "not_finite": "The melody has samples that are not numbers.",
}

logger = logging.getLogger(__name__)


class UploadDecoder:
    """Decodes uploads, a bounded number at a time. Thread-safe; starts no thread and keeps no file."""

    def __init__(self, config: Config) -> None:
        self._max_bytes = config.audio.max_upload_bytes
        self._max_seconds = config.audio.max_melody_seconds
        self._timeout_seconds = config.audio.melody_timeout_seconds
        self._slots = threading.BoundedSemaphore(config.audio.max_melody_decoders)

    def decode(self, upload: BinaryIO) -> AudioInput:
        """Read `upload` to its end and decode it to a waveform [C, T] float32 in -1 … 1, mono or stereo.

        Raises InvalidMelody with a sentence for each cause, PayloadTooLarge, Unavailable when all decoders stay
        busy, StorageUnavailable when there is no room for a temporary file.
        """
        try:
            # Files without a name: they go when they are closed, however this process ends.
            with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as samples:
                self._copy(upload, source)
                verdict = self._decode_in_child(source, samples)
                if "refused" in verdict:
                    raise self._refusal(verdict["refused"])
                samples.seek(0)
                interleaved = np.fromfile(samples, dtype=np.float32).reshape(-1, verdict["channels"])  # [T, C]
        except OSError as error:
            logger.error("An uploaded melody could not be decoded: %s", error)
            raise StorageUnavailable("There is no room to decode the melody now; try again later.") from error
        return AudioInput(np.ascontiguousarray(interleaved.T), verdict["sample_rate"])

    def _copy(self, upload: BinaryIO, source: BinaryIO) -> None:
        """Copy the upload into a file that a child can read, refusing what is too large or not a known format."""
        num_bytes = 0
        while block := upload.read(COPY_BYTES):
            if num_bytes == 0 and not _is_audio(block):
                raise self._refusal("unknown")
            num_bytes += len(block)
            if num_bytes > self._max_bytes:
                raise PayloadTooLarge(f"The melody file must not be larger than {self._max_bytes:,} bytes.")
            source.write(block)
        if num_bytes == 0:
            raise InvalidMelody("The melody file is empty.")
        source.flush()
        os.lseek(source.fileno(), 0, os.SEEK_SET)

    def _decode_in_child(self, source: BinaryIO, samples: BinaryIO) -> dict[str, Any]:
        if not self._slots.acquire(timeout=self._timeout_seconds):
            raise Unavailable("Too many melodies are being decoded; try again later.")
        try:
            return self._run_child(source, samples)
        finally:
            self._slots.release()

    def _run_child(self, source: BinaryIO, samples: BinaryIO) -> dict[str, Any]:
        # A fresh interpreter, not a fork: this process has threads and may hold gigabytes of weights.
        command = [sys.executable, "-I", upload_decoder.__file__, str(samples.fileno()), str(self._max_seconds)]
        try:
            child = subprocess.run(
                command,
                stdin=source,
                capture_output=True,
                pass_fds=(samples.fileno(),),
                env=_environment(),
                timeout=self._timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            logger.warning("Decoding an uploaded melody took over %g seconds.", self._timeout_seconds)
            return {"refused": "damaged"}
        if child.returncode == 0:
            verdict: dict[str, Any] = json.loads(child.stdout)
            return verdict
        logger.error("The melody decoder ended with %d: %s", child.returncode, child.stderr.decode(errors="replace"))
        if child.returncode < 0:  # killed by a signal: a bound was reached, or the decoder crashed
            return {"refused": "damaged"}
        raise Unavailable("Melodies cannot be decoded now; try again later.")

    def _refusal(self, cause: str) -> InvalidMelody:
        return InvalidMelody(REFUSALS[cause].format(max_seconds=self._max_seconds))


def _is_audio(head: bytes) -> bool:
    """Say whether a file that begins with `head` may be one of the four formats."""
    if head[:4] in (b"RIFF", b"RF64"):
        return head[8:12] == b"WAVE"
    # ID3 stands before MP3; a bare MP3 frame begins with eleven set bits, an MPEG version and layer III.
    return (
        head[:4] in (b"fLaC", b"OggS")
        or head[:3] == b"ID3"
        or (head[:1] == b"\xff" and head[1:2] > b"" and head[1] & 0xE6 == 0xE2)
    )


def _environment() -> dict[str, str]:
    """Return what the child needs to find its libraries, and none of this process's secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}
