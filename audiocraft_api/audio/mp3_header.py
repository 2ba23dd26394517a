"""The frame that tells players how long an MP3 is and what its encoder has added: written first, for streams.

Files get it from ffmpeg, which goes back for it. A stream's length is known before its end, so that it can be told at
the beginning. Layout: the "Xing" header of VBR files with LAME's extension (gabriel.mp3-tech.org/mp3infotag.html).
"""

from __future__ import annotations

FRAME_SAMPLES = 1152
ENCODER_DELAY = 576  # samples that LAME puts before the sound; a decoder adds 529 of its own
MIN_FRAME_BYTES = 160  # readers look for no header in smaller frames
BITRATES = (32, 40, 48, 56, 64, 80)  # kbit/s, from index 1
SAMPLE_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG-1


def length_frame(first_header: bytes, num_samples: int) -> bytes:
    """Return a silent frame that says that `num_samples` a channel follow, in frames like that of `first_header`.

    Nothing for rates that are not MPEG-1's.
    """
    if len(first_header) < 4 or first_header[:2] != b"\xff\xfb":
        return b""
    sample_rate_index = first_header[2] >> 2 & 3
    sizes = [144_000 * bitrate // SAMPLE_RATES[sample_rate_index] for bitrate in BITRATES]
    index = next(index for index, size in enumerate(sizes) if size >= MIN_FRAME_BYTES)
    is_mono = first_header[3] >> 6 == 3
    num_frames = -(-(num_samples + 2 * ENCODER_DELAY) // FRAME_SAMPLES)
    padding = num_frames * FRAME_SAMPLES - num_samples - ENCODER_DELAY
    frame = bytearray(sizes[index])
    frame[:4] = bytes((0xFF, 0xFB, index + 1 << 4 | sample_rate_index << 2, first_header[3]))
    start = 4 + (17 if is_mono else 32)
    has_frames = 1
    header = b"Xing" + has_frames.to_bytes(4, "big") + num_frames.to_bytes(4, "big")
    extension = b"Lavc".ljust(21, b"\0") + (ENCODER_DELAY << 12 | padding).to_bytes(3, "big")
    frame[start : start + len(header + extension)] = header + extension
    return bytes(frame)
