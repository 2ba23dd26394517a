"""Container files that would cost a naive decoder gigabytes or minutes, or that refer to other files."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

from support.hostile_audio import UPLOAD_BYTES
from support.recordings import FFMPEG

WEBM_HEAD = b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm"
UNKNOWN_SIZE = b"\x01" + b"\xff" * 7
SEGMENT, TRACKS, TRACK, CLUSTER = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\x1f\x43\xb6\x75"


def box(name: bytes, body: bytes = b"") -> bytes:
    """Return a box of an MP4 file."""
    return struct.pack(">I4s", 8 + len(body), name) + body


FTYP = box(b"ftyp", b"M4A \x00\x00\x00\x00M4A ")


def silence(directory: Path, seconds: int, extension: str, *arguments: str) -> bytes:
    """Return silence at 8 kHz, encoded by ffmpeg."""
    path = directory / f"silence.{extension}"
    source = ["-f", "lavfi", "-i", f"anullsrc=r=8000:cl=mono:d={seconds}"]
    subprocess.run([FFMPEG, "-v", "error", "-y", *source, *arguments, path], check=True, timeout=60)
    return path.read_bytes()


def bombs(directory: Path) -> dict[str, bytes]:
    """Return files by name; `directory` is for temporary files."""
    m4a = silence(directory, 1, "m4a", "-c:a", "aac")
    caf = silence(directory, 1, "caf", "-c:a", "alac")
    sizes = m4a.index(b"stsz")
    packets = caf.index(b"pakt")
    nested = b"".join(struct.pack(">I4s", UPLOAD_BYTES - 8 * depth, b"moov") for depth in range(100_000))
    compressed = zlib.compress(bytes(50 * 2**20))
    packed_moov = box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 2**31 - 1) + compressed))
    return {
        "MP4 of 90 silent seconds": silence(directory, 90, "m4a", "-c:a", "aac"),
        "MP4 of 90 silent seconds of ALAC": silence(directory, 90, "m4a", "-c:a", "alac"),
        "WebM of 90 silent seconds": silence(directory, 90, "webm", "-c:a", "libopus"),
        "CAF of 90 silent seconds": silence(directory, 90, "caf", "-c:a", "alac"),
        "Ogg of 90 silent seconds of FLAC": silence(directory, 90, "ogg", "-c:a", "flac"),
        "MP4 that claims 2^31 packets": m4a[: sizes + 12] + b"\x7f\xff\xff\xff" + m4a[sizes + 16 :],
        "MP4 of nested boxes": FTYP + nested,
        "MP4 of a million tracks": FTYP + box(b"moov", box(b"trak") * (UPLOAD_BYTES // 8 - 10)),
        "MP4 with a compressed index": FTYP + box(b"moov", packed_moov),
        "WebM of millions of tracks": WEBM_HEAD
        + SEGMENT
        + UNKNOWN_SIZE
        + TRACKS
        + UNKNOWN_SIZE
        + (TRACK + b"\x80") * (UPLOAD_BYTES // 2 - 50),
        "WebM of empty clusters": WEBM_HEAD + SEGMENT + UNKNOWN_SIZE + (CLUSTER + b"\x80") * (UPLOAD_BYTES // 5 - 50),
        "CAF that claims 2^40 packets": caf[: packets + 12] + struct.pack(">Q", 2**40) + caf[packets + 20 :],
        "AIFF of a million empty chunks": b"FORM\x7f\xff\xff\xffAIFF"
        + b"NAME\x00\x00\x00\x00" * (UPLOAD_BYTES // 8 - 10),
    }


def mov_with_external_audio(directory: Path, audio: Path) -> bytes:
    """Return a QuickTime file whose only track takes its samples from the file `audio`."""
    path = directory / "reference.mov"
    source = ["-f", "lavfi", "-i", "sine=d=1"]
    subprocess.run([FFMPEG, "-v", "error", "-y", *source, "-c:a", "pcm_s16le", path], check=True, timeout=60)
    data = bytearray(path.read_bytes())
    name = str(audio).encode()
    name += bytes(len(name) % 2)
    # An alias: a fixed part of 150 bytes, in which only the numbers of directories from and to are set, and entries of
    # a type, a length and a text. Type 2 is the absolute path.
    alias = bytes(130) + struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(name)) + name
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    here = data.index(b"\x00\x00\x00\x0curl \x00\x00\x00\x01", data.index(b"dref"))
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        size = data.rindex(parent, 0, here) - 4
        data[size : size + 4] = struct.pack(">I", struct.unpack(">I", data[size : size + 4])[0] + len(entry) - 12)
    data[here : here + 12] = entry
    return bytes(data)
