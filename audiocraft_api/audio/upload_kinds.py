"""Recognizes uploads that are not audio, to refuse them by name before a decoder runs.

A playlist, for example, can make a decoder open addresses and files.
"""

from __future__ import annotations

import codecs

HEAD_BYTES = 4096  # enough of a file to recognize it

SIGNATURES = {
    b"MThd": "a MIDI file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"PK\x03\x04": "an archive",
    b"\x1f\x8b": "an archive",
    b"Rar!": "an archive",
    b"7z\xbc\xaf": "an archive",
}
WEB_PAGES = ("<!doctype html", "<html")
PLAYLISTS = ("#extm3u", "ffconcat", "[playlist]", "<asx", "<smil", "<playlist", "<mpd")
CONTROL_CHARACTERS = frozenset(chr(code) for code in range(32)) - frozenset("\t\n\f\r")


def kind_of_other_file(head: bytes) -> str | None:
    """Return what a file that begins with `head` is, such as "a picture", or None if it may be audio."""
    head = head[:HEAD_BYTES]
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).lower()  # the last character may be cut
    except UnicodeDecodeError:
        return None
    if not text.strip() or CONTROL_CHARACTERS & set(text):
        return None
    text = text.lstrip()
    if text.startswith(WEB_PAGES):
        return "a web page"
    lists_addresses = "://" in text and not text.startswith("<")  # XML contains addresses of its schemas
    return "a playlist" if lists_addresses or any(mark in text for mark in PLAYLISTS) else "text"
