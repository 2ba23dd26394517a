"""Melodies of notes for tests: as recordings, as lines and as MIDI files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import mido
import numpy as np
import numpy.typing as npt

from audiocraft_api.core.melody_line import REST, MelodyLine, line_of

TICKS = 480  # per quarter note


def played(line: MelodyLine, sample_rate: int) -> npt.NDArray[np.float32]:
    """Return a recording [T] in which each note is a sine."""
    samples = np.zeros(round(line.seconds * sample_rate), np.float32)
    start = 0
    for note in line.notes:
        end = round(note.end_ms * sample_rate / 1000)
        if note.pitch != REST:
            frequency = 440 * 2 ** ((note.pitch - 69) / 12)
            samples[start:end] = 0.3 * np.sin(2 * np.pi * frequency * np.arange(end - start) / sample_rate)
        start = end
    return samples


def line_of_bins(bins: npt.NDArray[np.int64], hop_ms: float) -> MelodyLine:
    """Return the line whose chroma has these pitch classes: each sounds from half a hop before its frame's center."""
    ends = [*((np.arange(len(bins) - 1) + 0.5) * hop_ms / 1000), (len(bins) - 1) * hop_ms / 1000]
    return line_of((60 + int(pitch_class), float(end)) for pitch_class, end in zip(bins, ends, strict=True))


def midi_file(
    notes: Sequence[tuple[int | None, float]], *, tempo: int = 500_000, channel: int = 0, **options: Any
) -> bytes:
    """Return a MIDI file of successive notes: pitch, or None for a rest, and its length in quarter notes."""
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)])
    waited = 0
    for pitch, beats in notes:
        ticks = round(beats * TICKS)
        if pitch is None:
            waited += ticks
            continue
        track.append(mido.Message("note_on", note=pitch, velocity=80, time=waited, channel=channel))
        track.append(mido.Message("note_off", note=pitch, time=ticks, channel=channel))
        waited = 0
    track.append(mido.MetaMessage("end_of_track", time=waited))
    return saved(mido.MidiFile(tracks=[track], **{"type": 0, "ticks_per_beat": TICKS} | options))


def saved(file: mido.MidiFile) -> bytes:
    content = io.BytesIO()
    file.save(file=content)
    return content.getvalue()
