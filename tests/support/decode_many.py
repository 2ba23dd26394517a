"""Decodes many uploads in one process, under the bounds and through the function that decode each upload.

    python decode_many.py PACKED     (pairs of a length, 8 bytes, and a file)

Prints one JSON object: how many files were decoded and refused by cause, how many came out wrong, and the slowest.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO

import numpy as np
from peak_memory import PeakMemory

from audiocraft_api.audio import upload_decoder

MAX_SECONDS = 60.0


def main() -> None:
    causes: Counter[str] = Counter()
    num_wrong = 0
    slowest_seconds = 0.0
    # Many files take more processor time than one may; all other bounds are the real ones.
    upload_decoder.MIN_CPU_SECONDS = 120
    upload_decoder.silence_libraries()
    with open(sys.argv[1], "rb") as packed, tempfile.TemporaryFile(buffering=0) as source, PeakMemory() as peak:
        upload_decoder.limit_resources(MAX_SECONDS)
        while length := packed.read(8):
            source.truncate(0)
            source.seek(0)
            source.write(packed.read(struct.unpack("<Q", length)[0]))
            source.seek(0)
            samples = BytesIO()
            started = time.perf_counter()
            try:
                sample_rate, channels = upload_decoder.decode(source.fileno(), samples, MAX_SECONDS)
                decoded = np.frombuffer(samples.getvalue(), np.float32).reshape(-1, channels)
                right = 0.5 * sample_rate <= len(decoded) <= MAX_SECONDS * sample_rate and channels <= 2
                num_wrong += not (right and np.abs(decoded).max() <= 1.0)
                causes["decoded"] += 1
            except upload_decoder.Refused as refusal:
                causes[str(refusal)] += 1
            slowest_seconds = max(slowest_seconds, time.perf_counter() - started)
        peak_bytes = peak.read()
    verdict = {"causes": causes, "num_wrong": num_wrong, "slowest_seconds": slowest_seconds, "peak_bytes": peak_bytes}
    os.write(1, json.dumps(verdict).encode())


main()
