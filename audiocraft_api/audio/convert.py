"""Encodes waveforms as audio files, and owns the table of output formats.

libsndfile writes WAV, FLAC and Vorbis. ffmpeg writes MP3, AAC and Opus from a pydub `AudioSegment`; pydub's own
`export` cannot, because it has no timeout and leaves temporary files behind when ffmpeg is missing or fails. Knows
nothing of requests, stores or models.
"""

from __future__ import annotations

import io
import logging
import math
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
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
    # At import, pydub warns when ffmpeg is not on the PATH; `ffmpeg_executable` finds it elsewhere too. Python 3.11
    # and 3.12 warn that `audioop` will be removed; requirements.in has its replacement.
    warnings.simplefilter("ignore")
    from pydub import AudioSegment

MIN_SAMPLE_RATE = 8_000  # Hz
MAX_SAMPLE_RATE = 192_000  # Hz
OPUS_SAMPLE_RATE = 48_000  # Hz; Opus supports 8, 12, 16, 24 and 48 kHz, so MusicGen's 32 kHz is resampled

Samples = npt.NDArray[np.int16] | npt.NDArray[np.float32]  # [T, C]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioFormat:
    """An output format, written by libsndfile (`container`, `subtype`) or by ffmpeg (`arguments`).

    `stream_arguments` replace `arguments` for audio that is sent as it is generated, where they differ.
    """

    name: str
    extension: str
    media_type: str
    description: str
    container: str = ""
    subtype: str = ""
    arguments: tuple[str, ...] = ()
    stream_arguments: tuple[str, ...] = ()
    sample_rate: int | None = None  # Hz, if the format has a fixed one


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
            # No Xing frame: the stream encoder writes its own first (`mp3_header`).
            stream_arguments=("-codec:a", "libmp3lame", "-q:a", "2", "-id3v2_version", "0", "-f", "mp3"),
        ),
        AudioFormat(
            "m4a",
            "m4a",
            "audio/mp4",
            "AAC in MP4",
            arguments=("-codec:a", "aac", "-b:a", "192k", "-movflags", "+faststart", "-f", "ipod"),
            # Fragments of 0.2 s, each with its own index, after an empty one.
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
            # Pages of 0.1 s: ffmpeg writes a page only when the next one begins.
            stream_arguments=("-codec:a", "libopus", "-b:a", "128k", "-page_duration", "100000", "-f", "opus"),
            sample_rate=OPUS_SAMPLE_RATE,
        ),
    )
}


def _formats_of_other_services() -> Iterator[AudioFormat]:
    """Yield the formats that only routes in `web.compat` offer. Names contain rates in Hz, then in kbit/s."""
    mp3 = (22050, 32), (24000, 48), *((44100, rate) for rate in (32, 64, 96, 128, 192))
    for rate, bit_rate in (*mp3, *((48000, rate) for rate in (128, 192, 240, 320))):
        arguments = ("-codec:a", "libmp3lame", "-b:a", f"{bit_rate}k", "-f", "mp3")
        yield AudioFormat(
            *(f"mp3_{rate}_{bit_rate}", "mp3", "audio/mpeg", "MP3"),
            arguments=arguments,
            stream_arguments=(*arguments[:-2], "-id3v2_version", "0", "-write_xing", "0", "-f", "mp3"),
            sample_rate=rate,
        )
    for bit_rate in (32, 64, 96, 128, 192):
        arguments = ("-codec:a", "libopus", "-b:a", f"{bit_rate}k", "-f", "opus")
        yield AudioFormat(
            *(f"opus_48000_{bit_rate}", "opus", "audio/ogg", "Ogg Opus"),
            arguments=arguments,
            stream_arguments=("-page_duration", "100000", *arguments),
            sample_rate=OPUS_SAMPLE_RATE,
        )
    pcm = ("-codec:a", "pcm_s16le", "-f", "s16le")
    for rate in (8000, 16000, 22050, 24000, 32000, 44100, 48000):
        yield AudioFormat(f"pcm_{rate}", "pcm", "audio/pcm", "samples, 16 bit", arguments=pcm, sample_rate=rate)
    yield AudioFormat("pcm", "pcm", "audio/pcm", "samples, mono", arguments=("-ac", "1", *pcm), sample_rate=24000)
    for law, name in (("mulaw", "ulaw_8000"), ("alaw", "alaw_8000")):
        arguments = ("-ac", "1", "-codec:a", f"pcm_{law}", "-f", law)
        yield AudioFormat(name, law, "audio/basic", "samples, 8 bit, mono", arguments=arguments, sample_rate=8000)
    arguments = ("-codec:a", "aac", "-b:a", "192k", "-f", "adts")
    yield AudioFormat("aac", "aac", "audio/aac", "AAC", arguments=arguments)


ALL_FORMATS: dict[str, AudioFormat] = FORMATS | {
    audio_format.name: audio_format for audio_format in _formats_of_other_services()
}

MEDIA_TYPES: dict[str, str] = {
    audio_format.extension: audio_format.media_type for audio_format in FORMATS.values()
}  # by file name extension


def encode(
    waveform: Waveform,
    sample_rate: int,
    output_format: str,
    tags: Tags | None = None,
    *,
    timeout_seconds: float = 60.0,
) -> bytes:
    """Encode `waveform` [C, T] float32, mono or stereo, at `sample_rate` Hz as a whole file in one of `ALL_FORMATS`.

    Samples beyond -1 … 1 are clipped, except in `wav32f`. Lossless formats and Vorbis contain exactly T samples per
    channel; Opus contains T converted to 48 kHz, rounded up; players that honor the encoder delay of MP3 and AAC play
    T.

    Raises InvalidRequest for an unknown format, and ConversionFailed for anything else: a waveform that is empty,
    not mono or stereo, not finite, or not at 8 to 192 kHz; ffmpeg missing, failing or slower than `timeout_seconds`.
    """
    audio_format = ALL_FORMATS.get(output_format)
    if audio_format is None:
        message = f"output_format must be one of {', '.join(FORMATS)}."
        raise InvalidRequest(message, {"output_format": [message]})
    validate_waveform(waveform, sample_rate)
    try:
        if audio_format.arguments:
            return _encode_with_ffmpeg(waveform, sample_rate, audio_format, tags, timeout_seconds)
        return _encode_with_libsndfile(waveform, sample_rate, audio_format, tags)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        cause = getattr(error, "stderr", None) or error
        logger.error("Encoding a waveform of shape %s as %s failed: %s", waveform.shape, audio_format.name, cause)
        raise ConversionFailed(f"The audio could not be converted to {audio_format.name}.") from error


def ffmpeg_executable() -> str:
    """Return the path of the system's ffmpeg, or of the one in the imageio-ffmpeg package.

    Raises RuntimeError if neither exists.
    """
    return shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())


def validate_waveform(waveform: Waveform, sample_rate: int) -> None:
    """Raise ConversionFailed for a waveform that cannot be encoded in any format."""
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or waveform.shape[1] == 0:
        logger.error("A waveform of shape %s cannot be encoded.", waveform.shape)
        raise ConversionFailed("The generated audio is neither mono nor stereo, or it is empty.")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:  # libsndfile's Vorbis crashes at 0 Hz
        logger.error("A waveform at %d Hz cannot be encoded.", sample_rate)
        raise ConversionFailed("The generated audio has a sample rate that cannot be encoded.")
    if not np.isfinite(waveform).all():
        logger.error("A waveform of shape %s has samples that are NaN or infinite.", waveform.shape)
        raise ConversionFailed("The generated audio contains invalid samples (NaN or infinity).")


def _encode_with_libsndfile(
    waveform: Waveform, sample_rate: int, audio_format: AudioFormat, tags: Tags | None
) -> bytes:
    samples = to_libsndfile_samples(waveform, audio_format)
    file = io.BytesIO()
    with open_libsndfile(file, waveform.shape[0], sample_rate, audio_format) as encoder:
        if tags and audio_format.container != "WAV":
            tags.write(encoder)
        length = write_length(sample_rate)
        for start in range(0, len(samples), length):
            encoder.write(samples[start : start + length])
        if tags and audio_format.container == "WAV":
            tags.write(encoder)
    return file.getvalue()


def open_libsndfile(
    file: io.BytesIO, num_channels: int, sample_rate: int, audio_format: AudioFormat
) -> soundfile.SoundFile:
    """Open libsndfile's encoder for a format; write `write_length` samples [T, C] at a time."""
    quality = {"compression_level": 0.4} if audio_format.subtype == "VORBIS" else {}
    return soundfile.SoundFile(
        file, "w", sample_rate, num_channels, audio_format.subtype, format=audio_format.container, **quality
    )


def to_libsndfile_samples(waveform: Waveform, audio_format: AudioFormat) -> Samples:
    """Convert `waveform` [C, T] to the samples [T, C] that libsndfile accepts for a format."""
    if audio_format.subtype == "PCM_16":
        return pcm16(waveform)
    return waveform.T if audio_format.subtype == "FLOAT" else np.clip(waveform.T, -1.0, 1.0)


def write_length(sample_rate: int) -> int:
    """Return how many samples to write to libsndfile at a time: a tenth of a second.

    For Vorbis, libsndfile 1.2 puts a whole write on the stack and crashes at 90 s. The number is constant, because
    Vorbis output depends on the size of the writes.
    """
    return sample_rate // 10


def _encode_with_ffmpeg(
    waveform: Waveform, sample_rate: int, audio_format: AudioFormat, tags: Tags | None, timeout_seconds: float
) -> bytes:
    segment = AudioSegment(
        data=pcm16(waveform).tobytes(), sample_width=2, frame_rate=sample_rate, channels=waveform.shape[0]
    )
    command = [ffmpeg_executable(), "-nostdin", "-hide_banner", "-loglevel", "error", "-f", "wav", "-i", "pipe:0"]
    # Write to a file, not a pipe: the MP3 and MP4 muxers seek back to fill in the length.
    with tempfile.TemporaryDirectory(prefix="audiocraft-api-") as directory:
        path = Path(directory, f"audio.{audio_format.extension}")
        if tags:
            tags_path = Path(directory, "tags.txt")
            tags_path.write_text(tags.ffmetadata(), "utf-8")
            command += ["-f", "ffmetadata", "-i", str(tags_path), "-map_metadata", "1"]
        command += resampling(audio_format, waveform.shape[1], sample_rate)
        subprocess.run(
            [*command, *audio_format.arguments, str(path)],
            input=segment.export(io.BytesIO(), format="wav").getvalue(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout_seconds,
            check=True,
        )
        return path.read_bytes()


def resampling(audio_format: AudioFormat, num_samples: int, sample_rate: int) -> list[str]:
    """Return ffmpeg's arguments that resample `num_samples` at `sample_rate` Hz to the format's fixed rate, if any."""
    if audio_format.sample_rate is None:
        return []
    # The resampler drops its last samples: pad with silence and trim to the right length.
    length = math.ceil(num_samples * audio_format.sample_rate / sample_rate)
    return ["-af", f"aresample={audio_format.sample_rate},apad=whole_len={length},atrim=end_sample={length}"]


def pcm16(waveform: Waveform) -> npt.NDArray[np.int16]:
    """Return `waveform` [C, T] as interleaved 16-bit samples [T, C], scaled by 32768 and clipped."""
    scaled = np.rint(waveform.T * np.float32(32768.0))  # [T, C]
    return np.ascontiguousarray(np.clip(scaled, -32768, 32767), dtype=np.int16)
