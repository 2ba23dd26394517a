"""Decodes an uploaded melody or recording to a waveform, and reads melodies in MIDI files.

The file is untrusted, so a resource-limited child process decodes a recording.

The content decides the format; file names and media types are ignored. A file that is not audio is refused with 400,
because 415 concerns the content type of the request itself. Knows nothing of Flask or models.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from audiocraft_api.audio import midi, upload_decoder
from audiocraft_api.audio.upload_decoder import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, MIN_SECONDS
from audiocraft_api.audio.upload_kinds import kind_of_other_file
from audiocraft_api.config.audio import AudioSettings
from audiocraft_api.core.constants import MAX_LONG_DURATION_SECONDS, WINDOW_SECONDS
from audiocraft_api.core.errors import InvalidAudio, InvalidMelody, PayloadTooLarge, StorageUnavailable, Unavailable
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.params import AudioInput, Melody

COPY_BYTES = 2**20
# With the part that was continued, and the padding of an encoder.
MAX_OWN_SECONDS = MAX_LONG_DURATION_SECONDS + WINDOW_SECONDS + 1

ACCEPTED_FORMATS = "WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A, MP4 or WebM"
REFUSALS = {
    "other_file": "This file is {detail}, not audio. Upload the recording itself.",
    "unknown": f"The {{name}} must be a {ACCEPTED_FORMATS} file. This file is something else, or its start is damaged.",
    "codec": "The encoding of the {name} is not accepted: {detail}. Export it as WAV, FLAC or MP3.",
    "no_audio": "The {name} file contains no audio track. Upload a recording with sound.",
    "joined": "The {name} file joins recordings of different kinds. Export them as one recording.",
    "damaged": "The {name} file could not be read and may be damaged. Export it again and retry.",
    "sample_rate": f"The {{name}}'s sample rate must be between {MIN_SAMPLE_RATE:,} and {MAX_SAMPLE_RATE:,} Hz.",
    "channels": "The {name} must be mono or stereo.",
    "too_short": f"The {{name}} must be at least {MIN_SECONDS:g} seconds long.",
    "too_long": "The {name} must be at most {max_seconds:g} seconds long.",
    "too_fine": "The {name} has more samples than {max_seconds:g} seconds of 48 kHz stereo. Use a lower sample rate.",
    "not_finite": "The {name} contains invalid samples (NaN or infinity). Export it again.",
}

Upload = Literal["melody", "audio"]  # the field of the file: a melody to follow, or audio to continue
INVALID: Mapping[Upload, type[InvalidMelody | InvalidAudio]] = {"melody": InvalidMelody, "audio": InvalidAudio}

logger = logging.getLogger(__name__)


class UploadDecoder:
    """Decodes a bounded number of uploads at a time. Thread-safe; starts no threads and leaves no files."""

    def __init__(
        self,
        config: AudioSettings,
        *,
        program: Path = Path(upload_decoder.__file__),
        queue_timeout_seconds: float | None = None,
    ) -> None:
        """`program` decodes one upload; uploads wait for a decoder for `queue_timeout_seconds`, by default as long as
        decoding may take.
        """
        self._program = program
        self._max_bytes = config.max_upload_bytes
        self._max_melody_notes = config.max_melody_notes
        self._max_midi_events = config.max_midi_events
        self._max_seconds = {"melody": config.max_melody_seconds, "audio": config.max_continuation_seconds}
        self._timeout_seconds = config.melody_timeout_seconds
        self._queue_timeout_seconds = queue_timeout_seconds or config.melody_timeout_seconds
        self._slots = threading.BoundedSemaphore(config.max_melody_decoders)

    def decode_melody(self, upload: BinaryIO) -> Melody:
        """Read a melody: the top line of a MIDI file, which its content shows, or a recording. Raises as `decode`."""
        head = upload.read(len(midi.MAGIC))
        return self._read_midi(head, upload) if head == midi.MAGIC else self.decode(upload, head=head)

    def _read_midi(self, head: bytes, upload: BinaryIO) -> MelodyLine:
        with self._slot():  # bounds the memory of all files together
            data = head + upload.read(self._max_bytes + 1)
            if len(data) > self._max_bytes:
                raise PayloadTooLarge(f"The melody file must be at most {self._max_bytes:,} bytes.")
            try:
                line = midi.read_top_line(
                    data, max_events=self._max_midi_events, max_seconds=self._max_seconds["melody"]
                )
            except midi.MidiError as error:
                raise InvalidMelody(f"The MIDI file in melody {error}.") from error
        if line.seconds < MIN_SECONDS:
            raise InvalidMelody(f"The MIDI file in melody must be at least {MIN_SECONDS:g} seconds long.")
        if len(line.notes) > self._max_melody_notes:
            raise InvalidMelody(f"The MIDI file in melody must have at most {self._max_melody_notes:,} notes.")
        return line

    def decode(
        self, upload: BinaryIO, name: Upload = "melody", *, is_own: bool = False, head: bytes = b""
    ) -> AudioInput:
        """Read `upload` to its end and decode it to a waveform [C, T] float32 in -1 … 1, mono or stereo.

        `head` is what was read of the upload before. `is_own` lifts the limits of size and duration for audio that this
        server made.

        Raises InvalidMelody or InvalidAudio with the cause, PayloadTooLarge, Unavailable while all decoders are busy,
        and StorageUnavailable when the disk has no space for a temporary file.
        """
        try:
            # Unnamed files: the system deletes them when they are closed, however this process ends.
            with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as samples:
                self._copy(head, upload, source, name, None if is_own else self._max_bytes)
                max_seconds = MAX_OWN_SECONDS if is_own else self._max_seconds[name]
                verdict = self._decode_in_child(source, samples, max_seconds)
                if "refused" in verdict:
                    raise _refusal(name, verdict["refused"], verdict.get("detail", ""), max_seconds)
                samples.seek(0)
                interleaved = np.fromfile(samples, dtype=np.float32).reshape(-1, verdict["channels"])  # [T, C]
        except OSError as error:
            logger.error("An upload could not be decoded: %s", error)
            raise StorageUnavailable(f"The server has no disk space to decode the {name}. Try again later.") from error
        return AudioInput(np.ascontiguousarray(interleaved.T), verdict["sample_rate"])

    def _copy(self, head: bytes, upload: BinaryIO, source: BinaryIO, name: Upload, max_bytes: int | None) -> None:
        """Copy the upload to a file that the child can read. Raises if it is too large, empty or clearly not audio."""
        num_bytes = 0
        while block := head + upload.read(COPY_BYTES):
            head = b""
            if num_bytes == 0 and (kind := kind_of_other_file(block)):
                raise _refusal(name, "other_file", kind)
            num_bytes += len(block)
            if max_bytes is not None and num_bytes > max_bytes:
                raise PayloadTooLarge(f"The {name} file must be at most {max_bytes:,} bytes.")
            source.write(block)
        if num_bytes == 0:
            raise INVALID[name](f"The {name} file is empty.")
        source.flush()
        os.lseek(source.fileno(), 0, os.SEEK_SET)

    def _decode_in_child(self, source: BinaryIO, samples: BinaryIO, max_seconds: float) -> dict[str, Any]:
        with self._slot():
            return self._run_child(source, samples, max_seconds)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Wait for one of the decoders and occupy it for the block. Raises Unavailable."""
        if not self._slots.acquire(timeout=self._queue_timeout_seconds):
            raise Unavailable("The server is decoding too many uploads. Try again later.")
        try:
            yield
        finally:
            self._slots.release()

    def _run_child(self, source: BinaryIO, samples: BinaryIO, max_seconds: float) -> dict[str, Any]:
        # A new interpreter, not a fork: this process has threads and perhaps gigabytes of weights.
        command = [sys.executable, "-I", str(self._program), str(samples.fileno()), str(max_seconds)]
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
            logger.warning("Decoding an upload took over %g seconds.", self._timeout_seconds)
            return {"refused": "damaged"}
        if child.returncode == 0:
            verdict: dict[str, Any] = json.loads(child.stdout)
            return verdict
        logger.error(
            "The upload decoder exited with status %d: %s", child.returncode, child.stderr.decode(errors="replace")
        )
        if child.returncode < 0:  # killed by a signal: a resource limit was reached, or the decoder crashed
            return {"refused": "damaged"}
        raise Unavailable("The server cannot decode uploads at the moment. Try again later.")


def _refusal(name: Upload, cause: str, detail: str, max_seconds: float = 0.0) -> InvalidMelody | InvalidAudio:
    return INVALID[name](REFUSALS[cause].format(name=name, max_seconds=max_seconds, detail=detail))


def _environment() -> dict[str, str]:
    """Return the variables that the child needs to find its libraries, and none of this process's secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}
