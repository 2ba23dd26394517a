"""The program that decodes one uploaded melody, in a child process that `upload` starts and limits.

    python -I upload_decoder.py SAMPLES_FD MAX_SECONDS < upload

Writes the samples, interleaved float32, to the descriptor, and one JSON object to standard output: `sample_rate` and
`channels`, or `refused` with the name of the cause. Imports nothing of the package, so that it starts quickly. Trusts
no header of the file: only decoded samples count.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import soundfile

CONTAINERS = ("WAV", "WAVEX", "RF64", "MP3", "OGG", "FLAC")
MIN_SAMPLE_RATE = 8_000  # Hz
MAX_SAMPLE_RATE = 192_000  # Hz
MAX_CHANNELS = 2
MIN_SECONDS = 0.5
# One second of 48 kHz stereo. Bounds memory, because a queued request keeps its melody: audio with a higher rate must
# be shorter.
MAX_SAMPLES_PER_SECOND = 2 * 48_000
BLOCK_FRAMES = 65_536

MEMORY_BYTES = 128 * 2**20  # of address space, in addition to the interpreter and the libraries
MIN_CPU_SECONDS = 2


class Refused(Exception):
    """The file cannot be used as a melody; the message names the cause."""


def decode(source: int, samples: BinaryIO, max_seconds: float) -> tuple[int, int]:
    """Decode the file open as descriptor `source` into `samples`; return its sample rate in Hz and number of channels.

    Samples beyond -1 … 1 are clipped. Raises Refused.
    """
    try:
        with soundfile.SoundFile(source, closefd=False) as file:
            sample_rate, channels = file.samplerate, file.channels
            if file.format not in CONTAINERS:
                raise Refused("unknown")
            if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
                raise Refused("sample_rate")
            if channels > MAX_CHANNELS:
                raise Refused("channels")
            num_frames = 0
            while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):  # [t, C]
                num_frames += len(block)
                if num_frames > max_seconds * sample_rate:
                    raise Refused("too_long")
                if num_frames * channels > max_seconds * MAX_SAMPLES_PER_SECOND:
                    raise Refused("too_fine")
                if not np.isfinite(block).all():
                    raise Refused("not_finite")
                samples.write(np.clip(block, -1.0, 1.0).tobytes())
    except (soundfile.SoundFileError, MemoryError, ValueError):
        raise Refused("damaged") from None
    if num_frames < MIN_SECONDS * sample_rate:
        raise Refused("too_short")
    return sample_rate, channels


def limit_resources(max_seconds: float) -> None:
    """Limit this process irrevocably: memory, CPU time, file size, no core dump, and no newly opened files."""
    bounds = {
        resource.RLIMIT_CPU: max(MIN_CPU_SECONDS, math.ceil(max_seconds / 30)),
        resource.RLIMIT_FSIZE: math.ceil(max_seconds * MAX_SAMPLES_PER_SECOND * 4),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    # macOS has no /proc and does not enforce this limit; there the sample count and the file size bound memory.
    with suppress(OSError), open("/proc/self/statm") as statm:
        bounds[resource.RLIMIT_AS] = int(statm.read().split()[0]) * resource.getpagesize() + MEMORY_BYTES
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (bound, bound))


def silence_libraries() -> None:
    """Discard the libraries' standard error and keep Python's: libmpg123 writes a line for each damaged frame."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def main() -> None:
    """Decode standard input and print the result."""
    max_seconds = float(sys.argv[2])
    verdict: dict[str, str | int]
    silence_libraries()
    with open(int(sys.argv[1]), "wb") as samples:
        limit_resources(max_seconds)
        try:
            sample_rate, channels = decode(sys.stdin.fileno(), samples, max_seconds)
            verdict = {"sample_rate": sample_rate, "channels": channels}
        except Refused as refusal:
            verdict = {"refused": str(refusal)}
    print(json.dumps(verdict))


if __name__ == "__main__":
    main()
