"""The codes of audio as they are stored beside its file: a text line, then the tokens, compressed.

The line is `codes 1 <codec> <codebooks> <frames>`. The tokens follow in the order of their array: first the low bytes
of all of them, then the high bytes. The tokens of MusicGen have 11 bits; of mono, a minute of random ones takes 18 kB.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from audiocraft_api.core.params import Codes

HEADER = re.compile(rb"codes 1 ([0-9a-f]{1,64}) ([1-9][0-9]{0,2}) ([1-9][0-9]{0,5})\n")
MAX_TOKENS = 2**20


def to_bytes(codes: Codes) -> bytes:
    """Return the content of the file."""
    num_codebooks, num_frames = codes.tokens.shape
    planes = codes.tokens.astype("<u2").reshape(-1).view(np.uint8).reshape(-1, 2).T
    header = f"codes 1 {codes.codec} {num_codebooks} {num_frames}\n".encode()
    compressor = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)  # tokens repeat by chance only
    return header + compressor.compress(planes.tobytes()) + compressor.flush()


def from_bytes(data: bytes) -> Codes | None:
    """Return the codes; None if the file is damaged, which its checksum tells."""
    header = HEADER.match(data)
    if header is None:
        return None
    shape = int(header[2]), int(header[3])
    num_bytes = 2 * shape[0] * shape[1]
    if num_bytes > 2 * MAX_TOKENS:
        return None
    decompressor = zlib.decompressobj()
    try:
        planes = decompressor.decompress(data[header.end() :], num_bytes + 1)
    except zlib.error:
        return None
    if len(planes) != num_bytes or not decompressor.eof or decompressor.unused_data:
        return None
    pairs = np.frombuffer(planes, np.uint8).reshape(2, -1).T
    tokens = np.ascontiguousarray(pairs).view("<u2").reshape(shape).astype(np.uint16)
    return Codes(tokens, header[1].decode())
