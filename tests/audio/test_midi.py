"""The top line of MIDI files, compared with mido; files that are damaged."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import mido
import numpy as np
import pytest

from audiocraft_api.audio import midi
from audiocraft_api.audio.midi import MidiError, read_top_line
from audiocraft_api.core.errors import InvalidAudio, PayloadTooLarge
from audiocraft_api.core.melody_line import REST, MelodyLine, line_of
from audiocraft_api.core.params import AudioInput
from support.http import melody_file
from support.melodies import TICKS, midi_file, saved
from support.uploads import make_decoder, melody_refusal

C_E_G = [(60, 1), (64, 1), (67, 2), (None, 1)]


def read(data: bytes, **limits: Any) -> list[tuple[int, int]]:
    return [tuple(note) for note in read_line(data, **limits).notes]


def read_line(data: bytes, **limits: Any) -> MelodyLine:
    return read_top_line(data, **{"max_events": 1000, "max_seconds": 60.0} | limits)


def tracks(*tracks: Sequence[tuple[str, dict[str, Any]]], **options: Any) -> bytes:
    """Return a file of messages: a name and fields, `time` among them."""
    found = [
        mido.MidiTrack(
            mido.MetaMessage(name, **fields) if name in ("set_tempo", "end_of_track") else mido.Message(name, **fields)
            for name, fields in track
        )
        for track in tracks
    ]
    return saved(mido.MidiFile(tracks=found, **{"type": 1, "ticks_per_beat": TICKS} | options))


def on(note: int, time: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "note_on", {"note": note, "time": time, "velocity": 64} | fields


def off(note: int, time: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "note_off", {"note": note, "time": time} | fields


def raw(body: bytes, *, kind: int = 0, num_tracks: int = 1, division: int = TICKS, length: int | None = None) -> bytes:
    """Return a file of one track with these bytes."""
    header = struct.pack(">4sIHHH", b"MThd", 6, kind, num_tracks, division)
    return header + struct.pack(">4sI", b"MTrk", len(body) if length is None else length) + body


END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x40"  # middle C for a quarter note


# --- What sounds when


def test_a_melody_has_its_notes_and_rests() -> None:
    assert read(midi_file(C_E_G)) == [(500, 60), (1000, 64), (2000, 67), (2500, REST)]


def test_the_highest_pitch_of_all_tracks_and_channels_is_followed() -> None:
    chords = [on(60, 0), on(64, 0), on(67, 0), off(67, 480), off(64, 480), off(60, 480)]
    high = [on(72, 960, channel=5), off(72, 240, channel=5)]
    assert read(tracks(chords, high)) == [(500, 67), (1000, 64), (1250, 72), (1500, 60)]


def test_drums_are_ignored() -> None:
    drums = [on(100, 0, channel=9), off(100, 480, channel=9)]
    assert read(tracks(drums, [on(40, 0), off(40, 480)])) == [(500, 40)]
    with pytest.raises(MidiError, match="drum channel"):
        read(tracks(drums))


def test_the_tempo_may_change_while_a_note_sounds() -> None:
    tempos = [("set_tempo", {"tempo": 500_000, "time": 0}), ("set_tempo", {"tempo": 1_000_000, "time": 240})]
    notes = [on(60, 0), off(60, 480), on(62, 0), off(62, 480)]
    assert read(tracks(tempos, notes)) == [(750, 60), (1750, 62)]
    assert read(tracks(notes, tempos)) == [(750, 60), (1750, 62)]  # in a later track, too


def test_a_note_that_begins_again_sounds_on() -> None:
    for repeated in ([off(60, 480), on(60, 0)], [on(60, 480), off(60, 0)]):
        assert read(tracks([on(60, 0), *repeated, off(60, 480)])) == [(1000, 60)]


def test_a_note_without_length_does_not_sound() -> None:
    assert read(tracks([on(60, 0), on(72, 100), off(72, 0), off(60, 380)])) == [(500, 60)]


def test_a_note_without_an_end_sounds_to_the_end_of_the_file() -> None:
    assert read(tracks([on(60, 0), ("end_of_track", {"time": 960})])) == [(1000, 60)]


def test_a_velocity_of_zero_ends_a_note_and_running_status_continues() -> None:
    body = b"\x00\x90\x3c\x40\x83\x60\x3c\x00\x00\x3e\x40\x83\x60\x3e\x00" + END
    assert read(raw(body)) == [(500, 60), (1000, 62)]


def test_other_messages_chunks_and_bytes_after_the_end_are_skipped() -> None:
    other = b"\x00\xc0\x07\x00\xd0\x40\x00\xb0\x40\x7f\x00\xe0\x00\x40\x00\xa0\x3c\x10\x00\xf0\x03abc\x00\xff\x03\x01x"
    data = raw(other + NOTE + END + b"\x00\x90\x48\x40")
    extra = struct.pack(">4sI", b"XFIH", 3) + b"abc"
    assert read(data[:14] + extra + data[14:] + b"junk") == [(500, 60)]
    longer_header = b"MThd" + struct.pack(">I", 8) + data[8:14] + b"\x00\x00" + data[14:]
    assert read(longer_header) == [(500, 60)]
    assert read(raw(NOTE)) == [(500, 60)]  # without the end of the track


@pytest.mark.parametrize(("rate", "seconds"), [(24, 1.0), (25, 0.96), (30, 0.8), (29, 0.8008)])
def test_time_may_be_counted_in_frames_of_film(rate: int, seconds: float) -> None:
    division = (256 - rate) << 8 | 20  # 480 ticks are 24 frames
    tempo = b"\x00\xff\x51\x03\x00\x00\x01"  # has no effect
    assert read(raw(tempo + NOTE + END, division=division)) == [(round(seconds * 1000), 60)]


def test_times_and_lengths_equal_those_of_mido() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        found = [
            [
                ("set_tempo", {"tempo": int(rng.integers(200_000, 900_000)), "time": int(rng.integers(0, 700))})
                for _ in range(rng.integers(0, 5))
            ],
            *(random_track(rng) for _ in range(rng.integers(1, 4))),
        ]
        data = tracks(*found, ticks_per_beat=int(rng.integers(24, 960)))
        assert read_line(data, max_events=10_000) == line_with_mido(data)


def random_track(rng: np.random.Generator) -> list[tuple[str, dict[str, Any]]]:
    messages: list[tuple[str, dict[str, Any]]] = []
    for _ in range(int(rng.integers(1, 30))):
        pitch, channel = int(rng.integers(30, 100)), int(rng.integers(0, 16))
        messages += [
            on(pitch, int(rng.integers(0, 200)), channel=channel),
            off(pitch, int(rng.integers(1, 300)), channel=channel),
        ]
    return [*messages, on(60, 10, channel=0), off(60, 20, channel=0)]


def line_with_mido(data: bytes) -> MelodyLine:
    """Return the top line of notes that do not overlap within a track and a channel."""
    file = mido.MidiFile(file=io.BytesIO(data))
    sounding: list[tuple[int, int]] = []
    seconds, pitches = 0.0, []
    for message in file:
        if message.time:
            seconds += message.time
            pitches.append((max((pitch for pitch, _ in sounding), default=REST), seconds))
        if message.type in ("note_on", "note_off") and message.channel != midi.DRUM_CHANNEL:
            key = (message.note, message.channel)
            if message.type == "note_on" and message.velocity:
                sounding.append(key)
            else:
                sounding.remove(key)
    return line_of(pitches)


# --- Bounds and damage


def test_the_number_of_events_and_the_duration_are_bounded() -> None:
    data = midi_file([(60, 1)] * 10)
    assert read(data, max_events=22)
    with pytest.raises(MidiError, match="too many events"):
        read(data, max_events=21)
    with pytest.raises(MidiError, match=r"at most 4\.9 seconds"):
        read(data, max_seconds=4.9)
    far = raw(NOTE + b"\xff\xff\xff\x7f\xff\x2f\x00")
    with pytest.raises(MidiError, match="at most 60 seconds"):
        read(far)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"MThd", "ends too early"),
        (raw(NOTE + END)[:13], "ends too early"),
        (raw(NOTE + END)[:-1], "ends too early"),
        (raw(NOTE + END, num_tracks=2), "ends too early"),
        (raw(NOTE + END, num_tracks=0), "no tracks"),
        (raw(NOTE + END, kind=2), "format 2"),
        (raw(NOTE + END, division=0), "damaged header"),
        (raw(NOTE + END, division=0xE800), "damaged header"),
        (raw(NOTE + END, division=0x8101), "unknown rate"),
        (b"MThd\x00\x00\x00\x05" + raw(NOTE + END)[8:], "damaged header"),
        (raw(NOTE[:-1]), "track that ends too early"),
        (raw(b"\x00\xff\x51\x7f\x07"), "track that ends too early"),
        (raw(b"\x00\x3c\x40" + END), "data without a message"),
        (raw(b"\x00\x90\x80\x40" + END), "damaged message"),
        (raw(b"\x00\xf8" + END), "must not have"),
        (raw(b"\x80\x80\x80\x80\x00\x90\x3c\x40" + END), "damaged length"),
        (raw(b"\x00\xff\x51\x03\x00\x00\x00" + NOTE + END), "damaged tempo"),
        (raw(b"\x00\xff\x51\x02\x07\xa1" + NOTE + END), "damaged tempo"),
        (raw(END), "no notes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_refused_with_what_is_wrong(data: bytes, problem: str) -> None:
    with pytest.raises(MidiError, match=problem):
        read(data)


# --- As an upload


def test_the_content_makes_an_upload_a_midi_file() -> None:
    melody = make_decoder().decode_melody(io.BytesIO(midi_file(C_E_G)))
    assert isinstance(melody, MelodyLine)
    assert melody.seconds == 2.5


def test_recordings_are_decoded_as_before() -> None:
    recording = melody_file().getvalue()
    melody = make_decoder().decode_melody(io.BytesIO(recording))
    assert isinstance(melody, AudioInput)
    np.testing.assert_array_equal(melody.waveform, make_decoder().decode(io.BytesIO(recording)).waveform)


@pytest.mark.parametrize(
    ("data", "settings", "problem"),
    [
        (raw(NOTE + END)[:-1], {}, "The MIDI file in melody ends too early."),
        (midi_file([(60, 0.9)]), {}, "The MIDI file in melody must be at least 0.5 seconds long."),
        (midi_file(C_E_G), {"max_melody_seconds": 2}, "The MIDI file in melody must be at most 2 seconds long."),
        (midi_file(C_E_G), {"max_melody_notes": 3}, "The MIDI file in melody must have at most 3 notes."),
        (midi_file(C_E_G), {"max_midi_events": 5}, "The MIDI file in melody has too many events."),
        (b"", {}, "The melody file is empty."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_name_the_melody(data: bytes, settings: dict[str, Any], problem: str) -> None:
    assert melody_refusal(data, **settings) == problem


def test_a_midi_file_over_the_limit_of_bytes_is_refused() -> None:
    with pytest.raises(PayloadTooLarge, match="at most 1,024 bytes"):
        make_decoder(max_upload_bytes=1024).decode_melody(io.BytesIO(raw(NOTE + END) + bytes(1000)))


def test_a_midi_file_is_not_audio_to_continue() -> None:
    with pytest.raises(InvalidAudio, match="a MIDI file, not audio"):
        make_decoder().decode(io.BytesIO(midi_file(C_E_G)), "audio")
