"""Decodes uploads as the service does, in a process that does nothing else, and measures what each costs.

    python decode_uploads.py DIRECTORY

Prints a JSON object: for each file what came of it and the processor seconds, and the peak memory of this process and
of its largest child. On Linux a child's peak begins with its parent's memory, so that is the worst it can be.
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
