"""Decode many uploads in one process, with the limits and the function that the service uses for each upload.

    python decode_many.py PACKED     (a sequence of files, each after its length in 8 bytes)

Prints one JSON object: the number of files by outcome, the number of wrong results, the processor
seconds of the slowest file and the peak memory.
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
    # Many files need more processor time than the limit for one; all other limits are those of the service.
    upload_decoder.MIN_CPU_SECONDS = 120
    with open(sys.argv[1], "rb") as packed, tempfile.TemporaryFile(buffering=0) as source, PeakMemory() as peak:
        upload_decoder.limit_resources(MAX_SECONDS)
        while length := packed.read(8):
            source.truncate(0)
            source.seek(0)
            source.write(packed.read(struct.unpack("<Q", length)[0]))
            source.seek(0)
            samples = BytesIO()
            started = time.process_time()
            try:
                sample_rate, channels = upload_decoder.decode(source.fileno(), samples, MAX_SECONDS)
                decoded = np.frombuffer(samples.getvalue(), np.float32).reshape(-1, channels)
                right = 0.5 * sample_rate <= len(decoded) <= MAX_SECONDS * sample_rate and channels <= 2
                num_wrong += not (right and np.abs(decoded).max() <= 1.0)
                causes["decoded"] += 1
            except upload_decoder.Refused as refusal:
                causes[refusal.cause] += 1
            slowest_seconds = max(slowest_seconds, time.process_time() - started)
        peak_bytes = peak.read()
    verdict = {"causes": causes, "num_wrong": num_wrong, "slowest_seconds": slowest_seconds, "peak_bytes": peak_bytes}
    os.write(1, json.dumps(verdict).encode())


main()
