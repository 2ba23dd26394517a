"""Recordings in every container and in every codec that uploads may have, made by ffmpeg."""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import soundfile

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@dataclass(frozen=True)
class Kind:
    """How ffmpeg makes a file. `padding` is the number of samples by which its length may differ from the audio's."""

    extension: str
    arguments: tuple[str, ...] = ()
    is_piped: bool = False  # sizes and lengths in the header stay unknown
    padding: int = 0


# The encoder adds a delay (LAME: 1105 samples with the decoder's; AAC: 1024) and fills the last frame. Decoders remove
# both where the file contains their lengths, which these kinds do not.
MP3_PADDING = 1105 + 1152
AAC_PADDING = 1024
# ADPCM fills its last block. Only the "fact" chunk of WAV has the length, and ffmpeg does not read it.
ADPCM_PADDING = 2041
# ffmpeg does not know where the audio of a Vorbis file starts whose only page is also the last one: half a block.
VORBIS_PADDING = 512
AAC_STREAM = ("-c:a", "aac", "-movflags", "empty_moov+default_base_moof", "-frag_duration", "200000", "-f", "mp4")
FLAC_32_BIT = ("-c:a", "flac", "-sample_fmt", "s32", "-bits_per_raw_sample", "32", "-strict", "experimental")
BYTES = ("pcm_u8", "pcm_alaw", "pcm_mulaw")
LITTLE_ENDIAN = ("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le")
BIG_ENDIAN = ("pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be")

KINDS = {
    **{f"WAV {codec}": Kind("wav", ("-c:a", codec)) for codec in (*BYTES, *LITTLE_ENDIAN)},
    "WAV adpcm_ms": Kind("wav", ("-c:a", "adpcm_ms"), padding=ADPCM_PADDING),
    "WAV adpcm_ima_wav": Kind("wav", ("-c:a", "adpcm_ima_wav"), padding=ADPCM_PADDING),
    "RF64": Kind("wav", ("-rf64", "always")),
    "piped WAV": Kind("wav", ("-f", "wav"), is_piped=True),
    **{f"AIFF {codec}": Kind("aiff", ("-c:a", codec)) for codec in ("pcm_s8", *BIG_ENDIAN)},
    "CAF": Kind("caf"),
    "CAF ALAC": Kind("caf", ("-c:a", "alac")),
    "piped CAF": Kind("caf", ("-f", "caf"), is_piped=True),
    "FLAC": Kind("flac"),
    "FLAC 32 bit": Kind("flac", FLAC_32_BIT),
    "piped FLAC": Kind("flac", ("-f", "flac"), is_piped=True),
    "MP3": Kind("mp3"),
    "MP3 VBR": Kind("mp3", ("-q:a", "4")),
    "piped MP3": Kind("mp3", ("-f", "mp3"), is_piped=True, padding=MP3_PADDING),
    "Ogg Vorbis": Kind("ogg", ("-c:a", "libvorbis"), padding=VORBIS_PADDING),
    "Ogg Opus": Kind("opus", ("-c:a", "libopus")),
    "Ogg FLAC": Kind("ogg", ("-c:a", "flac")),
    "piped Ogg Opus": Kind("opus", ("-c:a", "libopus", "-f", "ogg"), is_piped=True),
    "M4A AAC": Kind("m4a", ("-c:a", "aac")),
    "M4A ALAC": Kind("m4a", ("-c:a", "alac")),
    "MP4 AAC": Kind("mp4", ("-c:a", "aac")),
    "MP4 Opus": Kind("mp4", ("-c:a", "libopus")),
    "MP4 FLAC": Kind("mp4", ("-c:a", "flac", "-strict", "experimental")),
    "piped MP4 AAC": Kind("mp4", AAC_STREAM, is_piped=True, padding=AAC_PADDING),
    "MOV": Kind("mov", ("-c:a", "pcm_s16le")),
    "WebM Opus": Kind("webm", ("-c:a", "libopus")),
    "WebM Vorbis": Kind("webm", ("-c:a", "libvorbis")),
    "piped WebM Opus": Kind("webm", ("-c:a", "libopus", "-f", "webm"), is_piped=True),
    "Matroska AAC": Kind("mka", ("-c:a", "aac"), padding=AAC_PADDING),
}


def record(directory: Path, samples: np.ndarray, sample_rate: int) -> dict[str, bytes]:
    """Return `samples` [T, C] as a file of each kind, by name; `directory` is for temporary files."""
    source = io.BytesIO()
    soundfile.write(source, samples, sample_rate, format="WAV", subtype="FLOAT")
    command = [FFMPEG, "-v", "error", "-y", "-i", "pipe:0"]
    paths = {}
    for index, (name, kind) in enumerate(KINDS.items()):
        paths[name] = directory / f"{index}.{kind.extension}"
        command += [*kind.arguments, "-seekable", "0" if kind.is_piped else "-1", f"file:{paths[name]}"]
    subprocess.run(command, input=source.getvalue(), check=True, timeout=60)
    return {name: path.read_bytes() for name, path in paths.items()}
