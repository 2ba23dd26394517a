"""Melody files for tests: valid ones, mutations, decompression bombs, and files that refer to other files.

Everything is drawn from fixed seeds, so that failures are reproducible.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import soundfile

UPLOAD_BYTES = 20 * 2**20  # the default upload limit; bombs stay just below it


def tone(seconds: float, sample_rate: int, channels: int) -> np.ndarray:
    """Return a chord with a little noise, [T, C], different in each channel."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    rng = np.random.default_rng(channels)
    columns = [
        0.3 * np.sin(2 * np.pi * 220 * (c + 1) * time) + 0.2 * np.sin(2 * np.pi * 331 * time) for c in range(channels)
    ]
    return (np.stack(columns, axis=1) + 0.01 * rng.standard_normal((len(time), channels))).astype(np.float32)


def audio_file(samples: np.ndarray, sample_rate: int, container: str, subtype: str) -> bytes:
    """Encode `samples` [T, C]."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=container, subtype=subtype)
    return file.getvalue()


def mutations(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged files with one to four defects each, mostly near the headers, made of `seeds` in turn."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        data = bytearray(seeds[index % len(seeds)])
        for _ in range(rng.integers(1, 5)):
            _damage(data, rng, seeds)
        yield bytes(data)


def _damage(data: bytearray, rng: np.random.Generator, seeds: list[bytes]) -> None:
    size = max(1, len(data))
    at = int(rng.integers(0, min(size, 200) if rng.random() < 0.6 else size))
    length = int(rng.integers(1, 64))
    match int(rng.integers(0, 9)):
        case 0 if data:
            data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(0, 8))
        case 1:
            data[at : at + length] = rng.bytes(length)
        case 2:
            del data[at:]
        case 3:
            data[at:at] = rng.bytes(length)
        case 4:
            del data[at : at + length]
        case 5:
            data[at : at + 4] = [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"][
                length % 4
            ]
        case 6:
            data[at:at] = data[at : at + length] * length
        case 7:
            other = seeds[int(rng.integers(0, len(seeds)))]
            data[at:] = other[at:]
        case _:
            data[at : at + length] = bytes(length)


def wav(
    data: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    sample_rate: int = 16_000,
    bits: int = 16,
    data_bytes: int | None = None,
    before_data: bytes = b"",
    block_bytes: int | None = None,
) -> bytes:
    """Return a WAV file with the given header fields."""
    block_bytes = channels * bits // 8 & 0xFFFF if block_bytes is None else block_bytes
    rate_bytes = sample_rate * block_bytes & 0xFFFFFFFF
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, sample_rate, rate_bytes, block_bytes, bits)
    chunk = struct.pack("<4sI", b"data", len(data) if data_bytes is None else data_bytes) + data
    body = b"WAVE" + fmt + before_data + chunk
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def flac_of_silence(seconds: int, sample_rate: int, channels: int, *, claimed_frames: int | None = None) -> bytes:
    """Return silence as FLAC: a block of 65,535 constant samples is a dozen bytes."""
    block = 65_535
    num_blocks = -(-seconds * sample_rate // block)
    claimed = num_blocks * block if claimed_frames is None else claimed_frames
    info = struct.pack(">HH", block, block) + bytes(6)
    info += (sample_rate << 44 | (channels - 1) << 41 | 15 << 36 | claimed & (1 << 36) - 1).to_bytes(8, "big") + bytes(
        16
    )
    stream = bytearray(b"fLaC" + b"\x80\x00\x00\x22" + info)
    for number in range(num_blocks):
        header = (
            bytes((0xFF, 0xF8, 0x70, (channels - 1) << 4 | 0x08))
            + chr(number + (0x800 if number >= 0xD800 else 0)).encode()
        )
        header += struct.pack(">H", block - 1)
        frame = header + bytes((_crc8(header),)) + b"\x00\x00\x00" * channels
        stream += frame + struct.pack(">H", _crc16(frame))
    return bytes(stream)


def _crc_table(polynomial: int, bits: int) -> list[int]:
    top, mask = 1 << bits - 1, (1 << bits) - 1
    table = []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & top else 0)) & mask
        table.append(crc)
    return table


CRC8, CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = CRC8[crc ^ byte]
    return crc


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ CRC16[crc >> 8 ^ byte]
    return crc


def _id3(size: int, body: bytes = b"") -> bytes:
    return b"ID3\x04\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + body


def bombs() -> dict[str, bytes]:
    """Return files, by name, that would cost a naive decoder gigabytes or minutes."""
    rng = np.random.default_rng(7)
    second = tone(1.0, 16_000, 1)
    mp3 = audio_file(second, 16_000, "MP3", "MPEG_LAYER_III")
    silent_mp3 = audio_file(np.zeros((8_000, 1), np.float32), 8_000, "MP3", "MPEG_LAYER_III")
    silent_frames = silent_mp3[
        silent_mp3.index(silent_mp3[:2], 2) :
    ]  # without the first frame, which contains the length
    vorbis = audio_file(second, 16_000, "OGG", "VORBIS")
    short_vorbis = audio_file(second[:800], 16_000, "OGG", "VORBIS")
    opus = audio_file(np.zeros((48_000 * 70, 1), np.float32), 48_000, "OGG", "OPUS")
    flac = audio_file(second, 16_000, "FLAC", "PCM_16")
    pcm = bytes(32_000)
    comment = vorbis.index(b"\x03vorbis")
    return {
        "an hour of 8-channel FLAC": flac_of_silence(3_600, 48_000, 8),
        "an hour of 192 kHz stereo FLAC": flac_of_silence(3_600, 192_000, 2),
        "72,000 seconds of mono FLAC": flac_of_silence(72_000, 44_100, 1),
        "a minute of 192 kHz stereo FLAC": flac_of_silence(58, 192_000, 2),
        "FLAC that claims 2^36 frames": flac_of_silence(2, 16_000, 1, claimed_frames=2**36 - 1)[:60],
        "FLAC of endless metadata blocks": b"fLaC" + b"\x01\x00\x00\x00" * (UPLOAD_BYTES // 4 - 100),
        "FLAC with frames of noise": flac[:42] + rng.bytes(UPLOAD_BYTES - 1000),
        "FLAC after a huge tag": _id3(2**28 - 1) + flac,
        "WAV at 1 Hz": wav(pcm, sample_rate=1),
        "WAV at 0 Hz": wav(pcm, sample_rate=0),
        "WAV at 2 GHz": wav(pcm, sample_rate=2**31 - 1),
        "WAV with 1,024 channels": wav(bytes(2048 * 1000), channels=1024),
        "WAV with 65,535 channels": wav(bytes(65_535 * 2 * 8), channels=65_535, block_bytes=65_535),
        "WAV with no channels": wav(pcm, channels=0),
        "WAV with 0-bit samples": wav(pcm, bits=0, block_bytes=0),
        "WAV of 20 minutes in one byte a sample": wav(bytes(UPLOAD_BYTES - 100), tag=7, bits=8, sample_rate=16_000),
        "WAV of ADPCM with a block size of one byte": wav(bytes(2**20), tag=0x11, bits=4, block_bytes=1),
        "WAV of a million empty chunks": wav(pcm, before_data=b"JUNK\x00\x00\x00\x00" * (UPLOAD_BYTES // 8 - 5000)),
        "WAV with a chunk of 4 GB": wav(pcm, before_data=b"LIST\xff\xff\xff\xff"),
        "RF64 that claims 2^63 bytes": b"RF64\xff\xff\xff\xffWAVEds64"
        + struct.pack("<IQQQI", 28, 2**63, 2**63, 2**62, 0)
        + wav(b"")[12:],
        "WAV of NaN samples": wav(np.full(16_000, np.nan, "<f4").tobytes(), tag=3, bits=32),
        "WAV of infinite samples": wav(np.full(16_000, np.inf, "<f4").tobytes(), tag=3, bits=32),
        "WAV of doubles beyond floats": wav(np.full(16_000, 1e300, "<f8").tobytes(), tag=3, bits=64),
        "MP3 of hours whose header says one second": silent_mp3 * (UPLOAD_BYTES // len(silent_mp3)),
        "MP3 of hours": silent_frames * (UPLOAD_BYTES // len(silent_frames)),
        "MP3 frame headers without frames": b"\xff\xfb\x90\x64" * (UPLOAD_BYTES // 4 - 1),
        "MP3 with 20 MB of noise": mp3[:500] + rng.bytes(UPLOAD_BYTES - 1000),
        "MP3 with 20 MB of zeros": mp3[:500] + bytes(UPLOAD_BYTES - 1000),
        "MP3 tag that claims 256 MB": _id3(2**28 - 1, mp3),
        "MP3 of a million tags": _id3(0) * (UPLOAD_BYTES // 10 - 1),
        "MP3 tag with nothing after it": _id3(UPLOAD_BYTES - 1000, bytes(UPLOAD_BYTES - 1000)),
        "Ogg of thousands of chained streams": short_vorbis * (UPLOAD_BYTES // len(short_vorbis)),
        "Ogg of page starts": b"OggS" * (UPLOAD_BYTES // 4 - 1),
        "Ogg of empty pages": (b"OggS\x00\x02" + bytes(21)) * (UPLOAD_BYTES // 27 - 1),
        "Vorbis with 2^32 comments": vorbis[: comment + 7] + b"\xff" * 8 + vorbis[comment + 15 :],
        "Vorbis with 20 MB of noise": vorbis[:4000] + rng.bytes(UPLOAD_BYTES - 5000),
        "Opus of over a minute of silence": opus,
        "gzip of a melody": gzip.compress(bytes(50 * 2**20)),
        "zlib of a melody": zlib.compress(bytes(50 * 2**20)),
    }


def playlists(address: str, local_file: str) -> dict[str, bytes]:
    """Return files that make some decoders fetch `address` (http://host:port) or open `local_file`, by name."""
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}/a.wav\n#EXT-X-ENDLIST\n"
    plain = {
        "HLS": hls,
        "HLS with a local segment": hls.replace(f"{address}/a.wav", local_file),
        "HLS with a key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{address}/key"\n#EXTINF:1,\n{local_file}\n',
        "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        f"<BaseURL>{address}/</BaseURL>"
        '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1"><BaseURL>a.mp4</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{address}/a.wav'\n",
        "ffconcat with a local file": f"ffconcat version 1.0\nfile '{local_file}'\n",
        "M3U": f"{address}/a.mp3\n",
        "PLS": f"[playlist]\nFile1={address}/a.mp3\nNumberOfEntries=1\n",
        "ASX": f'<asx version="3.0"><entry><ref href="{address}/a.mp3"/></entry></asx>',
        "XSPF": '<playlist version="1"><trackList><track>'
        f"<location>{address}/a</location></track></trackList></playlist>",
        "SMIL": f'<smil><body><audio src="{address}/a.wav"/></body></smil>',
        "SVG": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}/a.png"/></svg>',
        "an address": f"{address}/a.wav",
        "a path": local_file,
    }
    files = {name: text.encode() for name, text in plain.items()}
    for name, head in {
        "RIFF": b"RIFF\xff\xff\xff\xffWAVE",
        "ID3": _id3(0),
        "Ogg": b"OggS",
        "FLAC": b"fLaC",
        "MP3": b"\xff\xfb\x90\x64",
    }.items():
        files[f"HLS behind the magic of {name}"] = head + b"\n" + hls.encode()
    picture = b"\x00-->\x00\x03\x00" + address.encode() + b"/cover.png"
    files["a tag with a linked picture and no audio"] = _id3(
        10 + len(picture), b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    )
    return files
