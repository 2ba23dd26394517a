"""Read many MIDI files in one process with the limits of the service, and print one JSON object about them.

python read_many_midi.py PACKED     (a sequence of files, each after its length in 8 bytes)
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections import Counter

from peak_memory import PeakMemory

from audiocraft_api.audio.midi import MidiError, read_top_line
from audiocraft_api.config.audio import AudioSettings
from audiocraft_api.core.melody_line import REST


def main() -> None:
    causes: Counter[str] = Counter()
    num_wrong, slowest_seconds = 0, 0.0
    limits = AudioSettings()
    with open(sys.argv[1], "rb") as packed, PeakMemory() as peak:
        while length := packed.read(8):
            data = packed.read(struct.unpack("<Q", length)[0])
            started = time.process_time()
            try:
                line = read_top_line(data, max_events=limits.max_midi_events, max_seconds=limits.max_melody_seconds)
                ends = [note.end_ms for note in line.notes]
                right = ends == sorted(set(ends)) and line.seconds <= limits.max_melody_seconds
                num_wrong += not (right and all(REST <= note.pitch <= 127 for note in line.notes))
                causes["read"] += 1
            except MidiError as error:
                causes[str(error)] += 1
            slowest_seconds = max(slowest_seconds, time.process_time() - started)
        peak_bytes = peak.read()
    report = {"causes": causes, "num_wrong": num_wrong, "slowest_seconds": slowest_seconds, "peak_bytes": peak_bytes}
    print(json.dumps(report))


main()
