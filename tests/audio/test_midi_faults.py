"""Damaged and hostile MIDI files: each ends in a line or a refusal, at bounded cost."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mido
import pytest

from support import hostile_audio
from support.melodies import midi_file, saved
from support.scripts import run_support

NUM_MUTATIONS = 5_000
NUM_QUICK_MUTATIONS = 300
MAX_BYTES = 120e6  # of the interpreter, a file of 20 MiB and the events of the longest one
MAX_SECONDS = 2.0


def seeds() -> list[bytes]:
    """Return small files of both formats, with a map of tempos, chords, drums and other messages."""
    tempos = mido.MidiTrack(
        [mido.MetaMessage("set_tempo", tempo=tempo, time=960) for tempo in (500_000, 700_000, 350_000)]
    )
    chords = mido.MidiTrack([mido.Message("program_change", program=7), mido.Message("sysex", data=(1, 2, 3))])
    for pitch in (60, 64, 67, 72) * 4:
        chords.append(mido.Message("note_on", note=pitch, time=120, channel=pitch % 16))
        chords.append(mido.Message("note_off", note=pitch - 5, time=60, channel=pitch % 16))
        chords.append(mido.Message("pitchwheel", pitch=pitch, time=1))
    return [
        midi_file([(60, 1), (64, 1), (67, 2), (None, 1)] * 3),
        midi_file([(40, 1), (90, 0.25)], channel=9),
        saved(mido.MidiFile(type=1, ticks_per_beat=96, tracks=[tempos, chords])),
        saved(mido.MidiFile(type=1, ticks_per_beat=480, tracks=[chords] * 5)),
    ]


def bombs() -> list[bytes]:
    """Return files that would cost an unbounded reader many seconds or gigabytes."""
    size = 4 * 2**20
    header = struct.pack(">4sIHHH", b"MThd", 6, 1, 65_535, 480)

    def track(body: bytes) -> bytes:
        return struct.pack(">4sI", b"MTrk", len(body)) + body

    return [
        header + track(b"\x00\x90" + b"\x3c\x40\x00" * (hostile_audio.UPLOAD_BYTES // 3 - 20)),  # notes that never end
        header + track(b"\x01\xff\x51\x03\x00\x00\x01" * (size // 7 - 20)),  # tempos
        header + track(b"") * (size // 8 - 20),  # empty tracks
        header + track(b"\x00\xff\x2f\x00") * (size // 12 - 20),
        header + struct.pack(">4sI", b"XFIH", 0) * (size // 8 - 20),  # chunks that are skipped
        header + track(b"\x00\xf0\x84\x80\x00" + bytes(2**16)) * (size // (2**16 + 13) - 1),
        header + track(b"\x00\xff\x01\xff\xff\xff\x7f" + bytes(size - 1000)),  # a text of 256 MB
        header + bytes(size - 1000),
        header[:10] + b"\x00\x01\x00\x01" + track(b"\x00\x90\x3c\x40" + b"\xff\xff\xff\x7f\x3c\x40" * 90_000),
        header[:10] + b"\x00\x01\x01\xe0" + track(b"\x00\x90" + b"\x3c\x40\x00\x3c\x00\x00" * 49_000 + b"\x3c\x40"),
    ]


def report_on(files: Iterable[bytes], directory: Path) -> dict[str, Any]:
    """Read files in a child process, so that a crash or a leak fails."""
    packed = directory / "packed"
    with open(packed, "wb") as file:
        for data in files:
            file.write(struct.pack("<Q", len(data)) + data)
    return run_support("read_many_midi.py", packed)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    for data in hostile_audio.mutations(seeds(), count, seed):
        yield b"MThd" + data[4:]  # otherwise it is not a MIDI file to the service


def assert_bounded(report: dict[str, Any], count: int) -> None:
    assert sum(report["causes"].values()) == count
    assert report["num_wrong"] == 0
    assert report["peak_bytes"] < MAX_BYTES
    assert report["slowest_seconds"] < MAX_SECONDS


@pytest.mark.fault
def test_many_mutated_midi_files_end_in_a_line_or_a_refusal(tmp_path: Path) -> None:
    report = report_on(mutations(NUM_MUTATIONS, seed=30), tmp_path)
    print(f"faults survived: {NUM_MUTATIONS}/{NUM_MUTATIONS} ({report})")
    assert_bounded(report, NUM_MUTATIONS)
    assert report["causes"]["read"] > NUM_MUTATIONS / 20
    assert len(report["causes"]) > 8


def test_mutated_midi_files_and_bombs_end_in_a_line_or_a_refusal(tmp_path: Path) -> None:
    files = [*mutations(NUM_QUICK_MUTATIONS, seed=31), *bombs()]
    report = report_on(files, tmp_path)
    assert_bounded(report, len(files))
    assert report["causes"]["read"] > NUM_QUICK_MUTATIONS / 20
    assert report["causes"]["has too many events"] >= 2
