"""The program that decodes one uploaded melody, in a child process that `upload` starts and limits.

    python -I upload_decoder.py SAMPLES_FD MAX_SECONDS < upload

Writes the samples, interleaved float32, to the descriptor, and one JSON object to standard output: `sample_rate` and
`channels`, or `refused` with the name of the cause and `detail`. Imports nothing of the package, so that it starts
quickly.

ffmpeg's libraries (PyAV) read every container. Durations in headers are ignored: decoding ends with the data. Damaged
packets are skipped, as players do.
"""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, cast

import av
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import av.video.stream  # PyAV imports these four when a file has such a stream: too late, no file can be opened then
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec.context import Flags2
from av.container import InputContainer

# The names are ffmpeg's. Anything else is refused before it is parsed or decoded.
CONTAINERS = ("wav", "aiff", "caf", "flac", "mp3", "ogg", "mov", "matroska")
CODECS = (
    *("pcm_u8", "pcm_s8", "pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav"),
    *("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"),
    *("pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be"),
    *("flac", "alac", "mp3float", "vorbis", "opus", "aac"),
)
# Some containers can refer to other files. No protocol can open them: `_Source` reads the upload.
PROTOCOLS = ("none",)

MIN_SAMPLE_RATE = 8_000  # Hz
MAX_SAMPLE_RATE = 192_000  # Hz
MAX_CHANNELS = 2
MIN_SECONDS = 0.5
# One second of 48 kHz stereo. Bounds memory, because a queued request keeps its melody: audio with a higher rate must
# be shorter.
MAX_SAMPLES_PER_SECOND = 2 * 48_000

MEMORY_BYTES = 128 * 2**20  # of address space, in addition to the interpreter and the libraries
MIN_CPU_SECONDS = 3

# What PyAV raises on damaged data, by ffmpeg's error code.
DAMAGE = (av.FFmpegError, ValueError, MemoryError)


class Refused(Exception):
    """The file cannot be used as a melody. `cause` is a key of `upload.REFUSALS`."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.detail = detail


class _Source:
    """Reads the upload for PyAV, from a descriptor, because no file can be opened any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        return os.read(self._descriptor, size)

    def seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, whence)
        except OSError:  # damaged files make ffmpeg seek before the start
            return -errno.EIO

    def tell(self) -> int:
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)


class _Converter:
    """Converts frames to samples [t, C] in float32, at the rate and with the channels of the first frame.

    Frames change in the middle of a file when recordings of different kinds were joined.
    """

    def __init__(self) -> None:
        self._kind: tuple[str, str, int] | None = None  # of the frames that the resampler takes
        self._resampler: AudioResampler | None = None
        self.sample_rate = 0
        self.channels = 0

    def convert(self, frame: AudioFrame, length: int) -> Iterator[np.ndarray]:
        """Yield the samples that `frame` adds, without those after its first `length`. Raises Refused."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind or self._resampler is None:
            yield from self.finish()
            self._kind, self._resampler = kind, self._open_resampler(frame)
        frame.pts = None  # joined and damaged files have wrong time stamps
        is_whole = length >= frame.samples
        for block in self._resample(frame):  # one block as long as the frame, unless the rate changes
            yield block if is_whole else block[:length]

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the samples that the resampler still holds."""
        yield from self._resample(None)

    def _open_resampler(self, frame: AudioFrame) -> AudioResampler:
        channels = frame.layout.nb_channels
        _check_shape(frame.sample_rate, channels)
        if not self.channels:
            self.sample_rate, self.channels = frame.sample_rate, channels
        # An equal number of channels keeps its layout: converting the layout would change levels.
        layout = frame.layout if channels == self.channels else ("mono", "stereo")[self.channels - 1]
        return AudioResampler(format="flt", layout=layout, rate=self.sample_rate)

    def _resample(self, frame: AudioFrame | None) -> Iterator[np.ndarray]:
        converted = self._resampler.resample(frame) if self._resampler else []
        for part in converted:
            if part is not None:
                yield part.to_ndarray().reshape(-1, self.channels)


def decode(source: int, samples: BinaryIO, max_seconds: float) -> tuple[int, int]:
    """Decode the file open as descriptor `source` into `samples`; return its sample rate in Hz and number of channels.

    Samples beyond -1 … 1 are clipped. Raises Refused.
    """
    num_frames = 0
    converter = _Converter()
    with _open(source) as container:
        for block in _blocks(container, converter):
            num_frames += len(block)
            if num_frames > max_seconds * converter.sample_rate:
                raise Refused("too_long")
            if num_frames * converter.channels > max_seconds * MAX_SAMPLES_PER_SECOND:
                raise Refused("too_fine")
            if not np.isfinite(block).all():
                raise Refused("not_finite")
            samples.write(np.clip(block, -1.0, 1.0).tobytes())
    if num_frames == 0:
        raise Refused("damaged")
    if num_frames < MIN_SECONDS * converter.sample_rate:
        raise Refused("too_short")
    return converter.sample_rate, converter.channels


def _open(source: int) -> InputContainer:
    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": ",".join(PROTOCOLS),
    }
    try:
        return av.open(_Source(source), mode="r", options=options)
    except DAMAGE:
        raise Refused("unknown") from None


def _blocks(container: InputContainer, converter: _Converter) -> Iterator[np.ndarray]:
    """Yield the samples [t, C] of the best audio stream. Raises Refused."""
    stream = cast(AudioStream | None, container.streams.best("audio"))
    if stream is None:
        raise Refused("damaged" if container.streams.audio else "no_audio")
    codec = stream.codec_context
    if codec is None or codec.name not in CODECS:
        raise Refused("codec", codec.codec.long_name if codec else "unknown or protected")
    _check_shape(codec.sample_rate, codec.channels)
    codec.thread_count = 1
    if codec.name == "alac" and container.format.name == "caf":
        # ffmpeg would remove the padding twice: ALAC packets contain their own length.
        codec.flags2 |= Flags2.skip_manual
    is_mp4 = "mp4" in container.format.name
    try:
        for frame, is_last in _mark_last(_frames(container, stream)):
            length = _unpadded_length(frame) if is_last and is_mp4 else frame.samples
            yield from converter.convert(frame, length)
        yield from converter.finish()
    except DAMAGE:
        raise Refused("damaged") from None


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Yield the frames that can be decoded, up to the end of the data or to damage of the container. Raises Refused."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except DAMAGE as error:
            if isinstance(error, av.PatchWelcomeError) and container.format.name == "ogg":
                raise Refused("joined") from None  # ffmpeg cannot read joined Ogg files whose rates or channels differ
            break
        if packet is None:
            break
        with suppress(*DAMAGE):
            yield from packet.decode()
    with suppress(*DAMAGE):  # the frames that the decoder still holds
        yield from stream.codec_context.decode(None)


def _mark_last(frames: Iterator[AudioFrame]) -> Iterator[tuple[AudioFrame, bool]]:
    """Yield each frame with whether it is the last one."""
    previous: AudioFrame | None = None
    for frame in frames:
        if previous is not None:
            yield previous, False
        previous = frame
    if previous is not None:
        yield previous, True


def _unpadded_length(frame: AudioFrame) -> int:
    """Return how many samples of an MP4 file's last frame are audio. A shorter duration announces padding."""
    if not frame.duration or not frame.time_base:
        return frame.samples
    return min(frame.samples, round(frame.duration * frame.time_base * frame.sample_rate))


def _check_shape(sample_rate: int, channels: int) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise Refused("sample_rate")
    if not 1 <= channels <= MAX_CHANNELS:
        raise Refused("channels")


def limit_resources(max_seconds: float) -> None:
    """Limit this process irrevocably: memory, CPU time, file size, no core dump, and no newly opened files."""
    bounds = {
        resource.RLIMIT_CPU: max(MIN_CPU_SECONDS, math.ceil(max_seconds / 30)),
        resource.RLIMIT_FSIZE: math.ceil(max_seconds * MAX_SAMPLES_PER_SECOND * 4),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    # macOS has no /proc and does not enforce this limit; there the sample count and the file size bound memory.
    with suppress(OSError), open("/proc/self/statm") as statm:
        bounds[resource.RLIMIT_AS] = int(statm.read().split()[0]) * resource.getpagesize() + MEMORY_BYTES
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (bound, bound))


def main() -> None:
    """Decode standard input and print the result."""
    max_seconds = float(sys.argv[2])
    verdict: dict[str, str | int]
    with open(int(sys.argv[1]), "wb") as samples:
        limit_resources(max_seconds)
        try:
            sample_rate, channels = decode(sys.stdin.fileno(), samples, max_seconds)
            verdict = {"sample_rate": sample_rate, "channels": channels}
        except Refused as refusal:
            verdict = {"refused": refusal.cause, "detail": refusal.detail}
    print(json.dumps(verdict))


if __name__ == "__main__":
    main()
