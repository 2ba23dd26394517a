"""Uploads of every kind that players open are decoded whole: all containers, joined, damaged and unfinished files."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocraft_api.audio import convert, stream_encoding
from audiocraft_api.audio.upload_decoder import CODECS, CONTAINERS, Refused
from support import hostile_audio, recordings
from support.uploads import decode, decode_here, refusal, seconds_of

DATA = Path(__file__).parents[1] / "data" / "uploads"
LENGTH_TOLERANCE = 0.02  # seconds


def ffmpeg(path: Path, source: str, *arguments: str) -> bytes:
    """Return the file that ffmpeg makes of a filter, such as "sine=d=1"."""
    command = [recordings.FFMPEG, "-v", "error", "-y", "-f", "lavfi", "-i", source, *arguments, f"file:{path}"]
    subprocess.run(command, check=True, timeout=60)
    return path.read_bytes()


def assert_similar(decoded: np.ndarray, original: np.ndarray) -> None:
    """Check that two signals [T] are the same apart from a delay and a loss of quality."""
    size = len(decoded) + len(original)
    correlation = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(original, size)), size)
    assert correlation.max() > 0.97 * np.linalg.norm(decoded) * np.linalg.norm(original)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_of_each_kind_is_decoded_to_its_samples(channels: int, tmp_path: Path) -> None:
    tone = hostile_audio.tone(0.7, 48_000, channels)  # 48 kHz, as Opus is always decoded
    for name, data in recordings.record(tmp_path, tone, 48_000).items():
        audio = decode_here(data)
        assert audio.sample_rate == 48_000, name
        assert audio.waveform.shape[0] == channels, name
        for index in range(channels):  # shows that the channels are not swapped
            assert_similar(audio.waveform[index], tone[:, index])


@given(
    seconds=st.floats(0.55, 2.5),
    sample_rate=st.sampled_from([8_000, 16_000, 22_050, 32_000, 44_100, 48_000]),
    channels=st.sampled_from([1, 2]),
)
@settings(max_examples=4, deadline=None)
def test_the_length_of_every_kind_is_right_to_20_ms(
    tmp_path_factory: pytest.TempPathFactory, seconds: float, sample_rate: int, channels: int
) -> None:
    tone = hostile_audio.tone(seconds, sample_rate, channels)
    files = recordings.record(tmp_path_factory.mktemp("recordings"), tone, sample_rate)
    for name, data in files.items():
        error = seconds_of(decode_here(data)) - len(tone) / sample_rate
        assert abs(error) <= LENGTH_TOLERANCE + recordings.KINDS[name].padding / sample_rate, name


def test_the_kinds_cover_every_accepted_container_and_codec(tmp_path: Path) -> None:
    containers, codecs = set(), set()
    for data in recordings.record(tmp_path, hostile_audio.tone(0.1, 16_000, 1), 16_000).values():
        with av.open(io.BytesIO(data)) as container:
            containers |= set(container.format.name.split(","))
            codecs.add(container.streams.audio[0].codec_context.name)
    assert containers >= set(CONTAINERS)
    assert codecs == set(CODECS)


@pytest.mark.parametrize("output_format", convert.FORMATS)
def test_the_services_own_files_are_accepted_at_their_length(output_format: str) -> None:
    tone = hostile_audio.tone(1.3, 32_000, 2)
    audio = decode_here(convert.encode(np.ascontiguousarray(tone.T), 32_000, output_format))
    assert seconds_of(audio) == pytest.approx(1.3, abs=LENGTH_TOLERANCE)


@pytest.mark.parametrize("output_format", convert.FORMATS)
def test_a_saved_stream_is_accepted_at_its_length(output_format: str) -> None:
    tone = np.ascontiguousarray(hostile_audio.tone(1.3, 32_000, 2).T)
    encoder = stream_encoding.open_encoder(output_format, 2, 32_000, tone.shape[1], 20.0)
    try:
        stream = encoder.feed(tone[:, :20_000]) + encoder.feed(tone[:, 20_000:]) + encoder.finish()
    finally:
        encoder.close()
    padding = recordings.AAC_PADDING / 32_000 if output_format == "m4a" else 0.0
    assert seconds_of(decode_here(stream)) == pytest.approx(1.3, abs=LENGTH_TOLERANCE + padding)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("vbr-without-xing-1.5s.mp3", 1.548),
        ("joined-twice.mp3", 1.729),
        ("chained-vorbis.ogg", 1.21),
        ("bytes-lost-in-the-middle.mp3", 2.916),
        ("unknown-length.flac", 0.6),
        ("one-zero-byte-before.mp3", 0.864),
        ("data-size-0.wav", 1.0),
    ],
)
def test_a_file_that_players_open_is_decoded_to_its_end(name: str, seconds: float) -> None:
    audio = decode((DATA / name).read_bytes())
    assert seconds_of(audio) == pytest.approx(seconds, abs=0.001)


def test_a_long_mp3_without_a_length_header_is_refused_as_too_long(tmp_path: Path) -> None:
    data = ffmpeg(tmp_path / "x.mp3", "sine=d=70:r=22050", "-q:a", "9", "-write_xing", "0", "-id3v2_version", "0")
    assert refusal(data) == "The melody must be at most 60 seconds long."


def test_an_opus_file_whose_packets_span_pages_is_decoded(tmp_path: Path) -> None:
    noise = "anoisesrc=d=3:a=0.4:r=48000"
    data = ffmpeg(tmp_path / "x.opus", noise, "-ac", "2", "-c:a", "libopus", "-b:a", "510k", "-vbr", "off")
    assert seconds_of(decode(data)) == pytest.approx(3.0, abs=0.001)


def test_an_mp3_is_found_behind_zeros_tags_and_half_a_frame(tmp_path: Path) -> None:
    data = ffmpeg(tmp_path / "x.mp3", "sine=d=1:r=16000", "-id3v2_version", "0", "-write_xing", "0")
    id3 = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
    ape = b"APETAGEX" + b"\xd0\x07\x00\x00" + b"\x20\x00\x00\x00" + bytes(4) + b"\x00\x00\x00\xa0" + bytes(8)
    whole = seconds_of(decode_here(data))
    for before in (b"", bytes(1), bytes(1000), id3, id3 + bytes(700), ape):
        assert seconds_of(decode_here(before + data)) == pytest.approx(whole, abs=0.001), before[:8]
    assert seconds_of(decode_here(data[50:])) == pytest.approx(whole, abs=0.11)  # without the first frames


def joined(tmp_path: Path, extension: str, codec: str) -> bytes:
    """Return three recordings of two seconds each in one file; the one in the middle has another rate."""
    return b"".join(
        ffmpeg(tmp_path / f"{rate}.{extension}", f"sine=d=2:r={rate}", "-ac", channels, "-c:a", codec)
        for rate, channels in ((44_100, "1"), (16_000, "2"), (44_100, "1"))
    )


def test_joined_recordings_of_different_rates_and_channels_are_decoded_whole(tmp_path: Path) -> None:
    audio = decode_here(joined(tmp_path, "mp3", "libmp3lame"))
    assert (audio.sample_rate, audio.waveform.shape[0]) == (44_100, 1)
    assert seconds_of(audio) == pytest.approx(6.0, abs=0.2)
    for second in (0.5, 2.7, 4.8):  # each part is in its place and has its pitch: the tone of 440 Hz
        start = round(second * 44_100)
        spectrum = np.abs(np.fft.rfft(audio.waveform[0, start : start + 44_100]))
        assert abs(int(spectrum.argmax()) - 440) <= 1, second


def test_joined_ogg_files_of_different_rates_are_refused_instead_of_cut(tmp_path: Path) -> None:
    message = "The melody file joins recordings of different kinds. Export them as one recording."
    assert refusal(joined(tmp_path, "ogg", "libvorbis")) == message


@pytest.mark.parametrize("extension", ["mp3", "m4a", "flac"])
def test_a_cover_picture_does_not_matter(extension: str, tmp_path: Path) -> None:
    picture = ("-f", "lavfi", "-i", "testsrc=d=0.1:r=10", "-map", "0", "-map", "1", "-c:v", "png")
    data = ffmpeg(tmp_path / f"x.{extension}", "sine=d=1:r=44100", *picture, "-disposition:v", "attached_pic")
    assert b"\x89PNG" in data
    assert seconds_of(decode(data)) == pytest.approx(1.0, abs=LENGTH_TOLERANCE)


@pytest.mark.parametrize(("extension", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx")])
def test_the_sound_of_a_video_is_used(extension: str, codec: str, tmp_path: Path) -> None:
    video = ("-f", "lavfi", "-i", "testsrc=d=1:s=64x64:r=10", "-map", "0", "-map", "1", "-c:v", codec)
    data = ffmpeg(tmp_path / f"x.{extension}", "sine=d=1:r=48000", *video)
    assert seconds_of(decode(data)) == pytest.approx(1.0, abs=LENGTH_TOLERANCE)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    data = ffmpeg(tmp_path / "x.mp4", "testsrc=d=1:s=64x64:r=10", "-c:v", "mpeg4")
    assert refusal(data) == "The melody file contains no audio track. Upload a recording with sound."


@pytest.mark.parametrize(
    ("extension", "arguments", "name"),
    [
        ("mp4", ("-c:a", "ac3"), "ATSC A/52A (AC-3)"),
        ("wav", ("-c:a", "wmav2"), "Windows Media Audio 2"),
        ("mka", ("-c:a", "wavpack"), "WavPack"),
        ("mp3", ("-c:a", "mp2", "-f", "mp2"), "MP2 (MPEG audio layer 2)"),
    ],
)
def test_other_codecs_are_refused_by_name(
    extension: str, arguments: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    data = ffmpeg(tmp_path / f"x.{extension}", "sine=d=1:r=44100", *arguments)
    assert refusal(data) == f"The encoding of the melody is not accepted: {name}. Export it as WAV, FLAC or MP3."


@pytest.mark.parametrize("extension", ["w64", "avi", "wma", "ts", "au", "nut"])
def test_other_containers_are_refused(extension: str, tmp_path: Path) -> None:
    data = ffmpeg(tmp_path / f"x.{extension}", "sine=d=1:r=44100")
    with pytest.raises(Refused, match="unknown"):
        decode_here(data)
