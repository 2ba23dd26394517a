"""Turns waveforms into encoded audio, and owns the table of the formats that the service offers.

WAV, FLAC and Vorbis are written by libsndfile; MP3, AAC and Opus by ffmpeg from a pydub `AudioSegment`. pydub's own
`export` is not used for those: it has no time-out, and it leaves its temporary files behind when ffmpeg is missing
or fails. Knows nothing of requests, stores or models.
"""

from __future__ import annotations

import io
import logging
import math
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import soundfile

from audiocraft_api.audio.tags import Tags
from audiocraft_api.core.errors import ConversionFailed, InvalidRequest
from audiocraft_api.core.params import Waveform

with warnings.catch_warnings():
    # pydub looks for ffmpeg on the PATH while it is imported, and warns; here the binary is found by
    # `ffmpeg_executable`. Python 3.11 and 3.12 also warn that `audioop` will go (requirements.in has its successor).
    warnings.simplefilter("ignore")
    from pydub import AudioSegment

MIN_SAMPLE_RATE = 8_000  # Hz
MAX_SAMPLE_RATE = 192_000  # Hz
OPUS_SAMPLE_RATE = 48_000  # Hz; the codec knows 8, 12, 16, 24 and 48 kHz only, so MusicGen's 32 kHz is resampled

Samples = npt.NDArray[np.int16] | npt.NDArray[np.float32]  # [T, C]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioFormat:
    """One row of `FORMATS`. A format is written by libsndfile (`container`, `subtype`) or by ffmpeg (`arguments`).

    `stream_arguments` are for audio that is sent while it is made, where those of a file do not do.
    """

    name: str
    extension: str
    media_type: str
    description: str
    container: str = ""
    subtype: str = ""
    arguments: tuple[str, ...] = ()
    stream_arguments: tuple[str, ...] = ()
    sample_rate: int | None = None  # Hz, where the format fixes it


FORMATS: dict[str, AudioFormat] = {
    audio_format.name: audio_format
    for audio_format in (
        AudioFormat("wav", "wav", "audio/wav", "WAV, 16 bit", "WAV", "PCM_16"),
        AudioFormat("wav24", "wav", "audio/wav", "WAV, 24 bit", "WAV", "PCM_24"),
        AudioFormat("wav32f", "wav", "audio/wav", "WAV, 32-bit float", "WAV", "FLOAT"),
        AudioFormat("flac", "flac", "audio/flac", "FLAC, 16 bit", "FLAC", "PCM_16"),
        AudioFormat("ogg", "ogg", "audio/ogg", "Ogg Vorbis", "OGG", "VORBIS"),
        AudioFormat(
            "mp3",
            "mp3",
            "audio/mpeg",
            "MP3",
            arguments=("-codec:a", "libmp3lame", "-q:a", "2", "-f", "mp3"),
            # From the first frame on; the stream's encoder puts another one before it.
            stream_arguments=("-codec:a", "libmp3lame", "-q:a", "2", "-id3v2_version", "0", "-f", "mp3"),
        ),
        AudioFormat(
            "m4a",
            "m4a",
            "audio/mp4",
            "AAC in MP4",
            arguments=("-codec:a", "aac", "-b:a", "192k", "-movflags", "+faststart", "-f", "ipod"),
            # Fragments of 0.2 s, each with an index of its own, after a beginning that has none.
            stream_arguments=(
                *("-codec:a", "aac", "-b:a", "192k", "-movflags", "+empty_moov+default_base_moof"),
                *("-frag_duration", "200000", "-f", "mp4"),
            ),
        ),
        AudioFormat(
            "opus",
            "opus",
            "audio/ogg",
            "Ogg Opus, 48 kHz",
            arguments=("-codec:a", "libopus", "-b:a", "128k", "-f", "opus"),
            # Pages of 0.1 s; a page is only sent when the next one begins.
            stream_arguments=("-codec:a", "libopus", "-b:a", "128k", "-page_duration", "100000", "-f", "opus"),
            sample_rate=OPUS_SAMPLE_RATE,
        ),
    )
}

MEDIA_TYPES: dict[str, str] = {row.extension: row.media_type for row in FORMATS.values()}  # by file name extension


def encode(
    waveform: Waveform,
    sample_rate: int,
    output_format: str,
    tags: Tags | None = None,
    *,
    timeout_seconds: float = 60.0,
) -> bytes:
    """Encode `waveform` [C, T] float32, mono or stereo, at `sample_rate` Hz as a whole file in one of `FORMATS`.

    Samples beyond -1 … 1 are clipped (`wav32f` keeps them). Lossless formats and Vorbis hold exactly T samples a
    channel; Opus holds T at 48 kHz, rounded up; players that read the encoder's delay from MP3 and AAC get T.

    Raises InvalidRequest for an unknown format and ConversionFailed for everything else: a waveform that is empty,
    not mono or stereo, not finite, or not at 8 to 192 kHz; ffmpeg missing, failing or slower than `timeout_seconds`.
    """
    row = FORMATS.get(output_format)
    if row is None:
        message = f"output_format must be one of {', '.join(FORMATS)}."
        raise InvalidRequest(message, {"output_format": [message]})
    check(waveform, sample_rate)
    try:
        if row.arguments:
            return _encode_with_ffmpeg(waveform, sample_rate, row, tags, timeout_seconds)
        return _encode_with_libsndfile(waveform, sample_rate, row, tags)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        cause = getattr(error, "stderr", None) or error
        logger.error("Encoding %s as %s failed: %s", waveform.shape, row.name, cause)
        raise ConversionFailed(f"The audio could not be converted to {row.name}.") from error


def ffmpeg_executable() -> str:
    """Return the path of the system's ffmpeg, or else of the one that the imageio-ffmpeg package carries.

    Raises RuntimeError when there is neither.
    """
    return shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())


def check(waveform: Waveform, sample_rate: int) -> None:
    """Raise ConversionFailed for a waveform that no format can hold."""
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or waveform.shape[1] == 0:
        logger.error("A waveform of shape %s cannot be encoded.", waveform.shape)
        raise ConversionFailed("The generated audio is neither mono nor stereo, or it is empty.")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:  # libsndfile's Vorbis crashes at 0 Hz
        logger.error("A waveform at %d Hz cannot be encoded.", sample_rate)
        raise ConversionFailed("The generated audio has a sample rate that cannot be encoded.")
    if not np.isfinite(waveform).all():
        logger.error("A waveform of shape %s has samples that are not finite.", waveform.shape)
        raise ConversionFailed("The generated audio has samples that are not numbers.")


def _encode_with_libsndfile(waveform: Waveform, sample_rate: int, row: AudioFormat, tags: Tags | None) -> bytes:
    samples = samples_of(waveform, row)
    file = io.BytesIO()
    with open_libsndfile(file, waveform.shape[0], sample_rate, row) as encoder:
        if tags and row.container != "WAV":
            tags.write(encoder)
        length = write_length(sample_rate)
        for start in range(0, len(samples), length):
            encoder.write(samples[start : start + length])
        if tags and row.container == "WAV":
            tags.write(encoder)
    return file.getvalue()


def open_libsndfile(file: io.BytesIO, num_channels: int, sample_rate: int, row: AudioFormat) -> soundfile.SoundFile:
    """Open libsndfile's encoder of a format, to be fed in writes of `write_length` samples [T, C]."""
    quality = {"compression_level": 0.4} if row.subtype == "VORBIS" else {}
    return soundfile.SoundFile(file, "w", sample_rate, num_channels, row.subtype, format=row.container, **quality)


def samples_of(waveform: Waveform, row: AudioFormat) -> Samples:
    """Return what libsndfile is fed of `waveform` [C, T] for a format."""
    if row.subtype == "PCM_16":
        return pcm16(waveform)
    return waveform.T if row.subtype == "FLOAT" else np.clip(waveform.T, -1.0, 1.0)


def write_length(sample_rate: int) -> int:
    """Return the samples of one write to libsndfile: a tenth of a second.

    Not more: libsndfile 1.2 puts a whole write on the stack for Vorbis, and crashes at 90 s. Always as many: Vorbis
    looks ahead as far as it was fed, so that other writes make other audio.
    """
    return sample_rate // 10


def _encode_with_ffmpeg(
    waveform: Waveform, sample_rate: int, row: AudioFormat, tags: Tags | None, timeout_seconds: float
) -> bytes:
    segment = AudioSegment(
        data=pcm16(waveform).tobytes(), sample_width=2, frame_rate=sample_rate, channels=waveform.shape[0]
    )
    command = [ffmpeg_executable(), "-nostdin", "-hide_banner", "-loglevel", "error", "-f", "wav", "-i", "pipe:0"]
    # A file, not a pipe: the MP3 and MP4 writers go back to fill in the length.
    with tempfile.TemporaryDirectory(prefix="audiocraft-api-") as directory:
        path = Path(directory, f"audio.{row.extension}")
        if tags:
            tags_path = Path(directory, "tags.txt")
            tags_path.write_text(tags.ffmetadata(), "utf-8")
            command += ["-f", "ffmetadata", "-i", str(tags_path), "-map_metadata", "1"]
        command += resampling(row, waveform.shape[1], sample_rate)
        subprocess.run(
            [*command, *row.arguments, str(path)],
            input=segment.export(io.BytesIO(), format="wav").getvalue(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout_seconds,
            check=True,
        )
        return path.read_bytes()


def resampling(row: AudioFormat, num_samples: int, sample_rate: int) -> list[str]:
    """Return ffmpeg's arguments that bring `num_samples` at `sample_rate` Hz to the rate that a format fixes, if any."""
    if row.sample_rate is None:
        return []
    # The resampler keeps back its last samples: pad with silence and cut to the right count.
    length = math.ceil(num_samples * row.sample_rate / sample_rate)
    return ["-af", f"aresample={row.sample_rate},apad=whole_len={length},atrim=end_sample={length}"]


def pcm16(waveform: Waveform) -> npt.NDArray[np.int16]:
    """Return `waveform` [C, T] as interleaved 16-bit samples [T, C], clipped; what a reader divides by 32768."""
    scaled = np.rint(waveform.T * np.float32(32768.0))  # [T, C]
    return np.ascontiguousarray(np.clip(scaled, -32768, 32767), dtype=np.int16)
