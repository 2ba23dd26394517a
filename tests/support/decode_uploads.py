"""Decode uploads as the service does, in a separate process, and measure the cost of each.

    python decode_uploads.py DIRECTORY

Prints a JSON object: the outcome and the processor seconds of each file, and the peak memory of this process and of its
largest child. On Linux a child's peak includes its parent's memory at the fork, so it is an upper bound.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from peak_memory import PeakMemory

from audiocraft_api.audio.upload import UploadDecoder
from audiocraft_api.config import load_config
from audiocraft_api.core.errors import AudioCraftError


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    decoder = UploadDecoder(load_config({}).audio)
    outcomes = {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        started = cpu_seconds()
        try:
            with open(path, "rb") as upload:
                waveform = decoder.decode(upload).waveform
            outcome = f"decoded {waveform.shape[0]}x{waveform.shape[1]}"
        except AudioCraftError as error:
            outcome = error.code
        outcomes[path.name] = {"outcome": outcome, "cpu_seconds": cpu_seconds() - started}
    with PeakMemory() as peak:
        peaks = {"own": peak.read(), "children": peak.read_children()}
    print(json.dumps({"outcomes": outcomes, "peak_bytes": peaks}))


main()
