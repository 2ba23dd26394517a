"""The first frame of a streamed MP3: its length, and the delay and padding that the encoder adds.

In files, ffmpeg seeks back and writes this frame at the end. A stream cannot, but its length is known from the start.
Layout: the "Xing" header of VBR files with LAME's extension (gabriel.mp3-tech.org/mp3infotag.html).
"""

from __future__ import annotations

FRAME_SAMPLES = 1152
ENCODER_DELAY = 576  # samples that LAME adds before the audio; decoders add another 529
MIN_FRAME_BYTES = 160  # readers ignore the header in smaller frames
BITRATES = (32, 40, 48, 56, 64, 80)  # kbit/s, from index 1
SAMPLE_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG-1


def length_frame(first_header: bytes, num_samples: int) -> bytes:
    """Return a silent frame announcing `num_samples` per channel, in frames of `first_header`'s kind.

    Returns b"" for sample rates that are not MPEG-1's.
    """
    if len(first_header) < 4 or first_header[:2] != b"\xff\xfb":
        return b""
    sample_rate_index = first_header[2] >> 2 & 3
    if sample_rate_index == len(SAMPLE_RATES):  # reserved
        return b""
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
