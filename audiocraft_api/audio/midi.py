"""Reads the top line of a Standard MIDI File: the highest pitch that sounds at each time.

The drum channel is ignored, and so are velocities, pedals, pitch bends and instruments. mido, which the tests compare
this reader with, builds an object for each event without any limit: 6 seconds and 200 MB for a file of 2 MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain, groupby
from typing import NamedTuple

from audiocraft_api.core.melody_line import REST, MelodyLine, line_of

MAGIC = b"MThd"
DRUM_CHANNEL = 9  # counted from 0; 10 in programs for music
DEFAULT_TEMPO = 500_000  # microseconds per quarter note
SMPTE_RATES = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}  # frames per second

NOTE_OFF, NOTE_ON, PROGRAM, CHANNEL_PRESSURE = 0x80, 0x90, 0xC0, 0xD0
META, SYSEX, SYSEX_PART = 0xFF, 0xF0, 0xF7
END_OF_TRACK, SET_TEMPO = 0x2F, 0x51


class MidiError(ValueError):
    """The file cannot be used. The message is a clause about it, such as "ends too early"."""


class _Event(NamedTuple):
    tick: int
    track: int
    status: int  # SET_TEMPO, or a note's message and channel
    value: int  # microseconds per quarter note, or a pitch
    velocity: int = 0


def read_top_line(data: bytes, *, max_events: int, max_seconds: float) -> MelodyLine:
    """Return the top line of a file, which is as long as its longest track. Raises MidiError."""
    num_tracks, division = _read_header(data)
    events: list[_Event] = []
    last_tick, num_left = 0, max_events
    for number, (start, end) in enumerate(_tracks(data, num_tracks, max_events)):
        track = _Track(data, start, end, number, num_left)
        events += track.events()
        num_left, last_tick = track.num_left, max(last_tick, track.tick)
    events.sort(key=lambda event: event.tick)  # tempos before and after notes of a tick are equal
    return line_of(_top_pitches(events, division, last_tick, max_seconds))


def _read_header(data: bytes) -> tuple[int, int]:
    """Return the number of tracks and the division of time."""
    if len(data) < 14:
        raise MidiError("ends too early")
    length, kind, num_tracks, division = struct.unpack_from(">IHHH", data, 4)
    if length < 6:
        raise MidiError("has a damaged header")
    if kind > 1:
        raise MidiError("is of format 2, a set of patterns; export it as format 0 or 1")
    if num_tracks == 0:
        raise MidiError("has no tracks")
    if division == 0 or (division & 0x8000 and not division & 0xFF):
        raise MidiError("has a damaged header")
    return num_tracks, division


def _tracks(data: bytes, number: int, max_chunks: int) -> Iterator[tuple[int, int]]:
    """Yield where each track begins and ends; other chunks are skipped."""
    position = 8 + struct.unpack_from(">I", data, 4)[0]
    for _ in range(max_chunks):
        if number == 0:
            return
        if position + 8 > len(data):
            raise MidiError("ends too early")
        name, length = struct.unpack_from(">4sI", data, position)
        start, position = position + 8, position + 8 + length
        if position > len(data):
            raise MidiError("ends too early")
        if name == b"MTrk":
            number -= 1
            yield start, position
    raise MidiError("has too many chunks")


class _Track:
    """Reads the events of one track. Afterwards, `tick` is its length."""

    def __init__(self, data: bytes, start: int, end: int, number: int, max_events: int) -> None:
        self._data, self._position, self._end, self._number = data, start, end, number
        self.num_left = max_events
        self.tick = 0

    def events(self) -> Iterator[_Event]:
        """Yield tempos and notes. Raises MidiError."""
        status = 0
        while self._position < self._end:
            if self.num_left == 0:
                raise MidiError("has too many events")
            self.num_left -= 1
            self.tick += self._length()
            first = self._byte()
            if first in (META, SYSEX, SYSEX_PART):
                if first == META and (found := self._meta()) is not None:
                    if found == 0:  # the end of the track
                        return
                    yield _Event(self.tick, self._number, SET_TEMPO, found)
                elif first != META:
                    self._skip(self._length())
                continue
            if first < 0x80:  # running status
                self._position -= 1
            elif first < 0xF0:
                status = first
            else:
                raise MidiError("contains a message that files must not have")
            if not status:
                raise MidiError("contains data without a message")
            pitch = self._data_byte()
            message = status & 0xF0
            velocity = 0 if message in (PROGRAM, CHANNEL_PRESSURE) else self._data_byte()
            if message in (NOTE_OFF, NOTE_ON) and status & 0x0F != DRUM_CHANNEL:
                yield _Event(self.tick, self._number, status, pitch, velocity if message == NOTE_ON else 0)

    def _meta(self) -> int | None:
        """Read a meta event; return the tempo, 0 for the end of the track, or None for any other."""
        kind, length = self._byte(), self._length()
        start = self._position
        self._skip(length)
        if kind == END_OF_TRACK:
            return 0
        if kind != SET_TEMPO:
            return None
        tempo = int.from_bytes(self._data[start : start + length])
        if length != 3 or tempo == 0:
            raise MidiError("contains a damaged tempo")
        return tempo

    def _length(self) -> int:
        """Read a number of variable length, of at most four bytes."""
        value = 0
        for _ in range(4):
            byte = self._byte()
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        raise MidiError("contains a damaged length")

    def _byte(self) -> int:
        if self._position >= self._end:
            raise MidiError("has a track that ends too early")
        self._position += 1
        return self._data[self._position - 1]

    def _data_byte(self) -> int:
        byte = self._byte()
        if byte >= 0x80:
            raise MidiError("contains a damaged message")
        return byte

    def _skip(self, length: int) -> None:
        if self._position + length > self._end:
            raise MidiError("has a track that ends too early")
        self._position += length


class _Sounding:
    """The pitches that sound. A note that ends and begins at the same tick sounds on, in whatever order."""

    def __init__(self) -> None:
        self._started: dict[tuple[int, int, int], tuple[int, bool]] = {}  # tick, and whether it sounded before
        self._counts = [0] * 128
        self._mask = 0

    @property
    def top(self) -> int:
        """The highest pitch, or REST."""
        return self._mask.bit_length() - 1 if self._mask else REST

    def apply(self, event: _Event) -> None:
        key = (event.track, event.status & 0x0F, event.value)
        started = self._started.get(key)
        if event.velocity:
            self._started[key] = (event.tick, started is not None and started[0] < event.tick)
            if started is None:
                self._counts[event.value] += 1
                self._mask |= 1 << event.value
        elif started is not None and started == (event.tick, True):
            self._started[key] = (event.tick, False)
        elif started is not None:
            del self._started[key]
            self._counts[event.value] -= 1
            if not self._counts[event.value]:
                self._mask &= ~(1 << event.value)


def _top_pitches(
    events: list[_Event], division: int, last_tick: int, max_seconds: float
) -> Iterator[tuple[int, float]]:
    """Yield the highest pitch of each span of time, and the seconds at which it ends."""
    is_smpte = bool(division & 0x8000)
    seconds_per_tick = _smpte_tick(division) if is_smpte else DEFAULT_TEMPO / 1e6 / division
    sounding, seconds, tick, has_notes = _Sounding(), 0.0, 0, False
    moments = groupby(events, key=lambda event: event.tick)
    for next_tick, at_once in chain(moments, [(last_tick, iter(()))]):
        seconds += (next_tick - tick) * seconds_per_tick
        if seconds > max_seconds:
            raise MidiError(f"must be at most {max_seconds:g} seconds long")
        if next_tick > tick:
            yield sounding.top, seconds
            has_notes |= sounding.top != REST
        tick = next_tick
        for event in at_once:
            if event.status != SET_TEMPO:
                sounding.apply(event)
            elif not is_smpte:
                seconds_per_tick = event.value / 1e6 / division
    if not has_notes:
        raise MidiError("contains no notes outside of the drum channel, 10")


def _smpte_tick(division: int) -> float:
    """Return the seconds of a tick of a file that counts frames of film."""
    rate = SMPTE_RATES.get(256 - (division >> 8))
    if rate is None:
        raise MidiError("counts time in frames of an unknown rate")
    return 1 / rate / (division & 0xFF)
