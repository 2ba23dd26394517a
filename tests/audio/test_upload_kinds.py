"""Uploads that are not audio are recognized by their content, and audio never is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from audiocraft_api.audio.upload_kinds import kind_of_other_file
from support import hostile_audio, recordings


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"MThd\x00\x00\x00\x06", "a MIDI file"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a picture"),
        (b"PK\x03\x04\x14\x00", "an archive"),
        (gzip.compress(b"audio", mtime=0), "an archive"),
        (b"<!DOCTYPE html>\n<html><a href='https://example.org/a.mp3'>", "a web page"),
        (b"\xef\xbb\xbf#EXTM3U\r\nsong.mp3\r\n", "a playlist"),
        (b"https://example.org/song.mp3\n", "a playlist"),
        (b"[playlist]\nFile1=song.mp3\n", "a playlist"),
        (b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">', "a playlist"),
        (b'<?xml version="1.0"?>\n<score-partwise xmlns="http://www.musicxml.org">', "text"),
        ("v=0\ns=für Elise\n".encode(), "text"),
        (b"a" * 4095 + "ü".encode() * 100, "text"),
    ],
)
def test_files_of_other_kinds_are_named(head: bytes, kind: str) -> None:
    assert kind_of_other_file(head) == kind


def test_audio_and_unknown_data_have_no_other_kind(tmp_path: Path) -> None:
    for name, data in recordings.record(tmp_path, hostile_audio.tone(0.1, 16_000, 1), 16_000).items():
        assert kind_of_other_file(data) is None, name
    for data in (b"\x00", b"\xff\xfb\x90\x64", b"ID3\x03\x00", b"\n\n", bytes(5000)):
        assert kind_of_other_file(data) is None
