"""Encoding: every format contains the right samples, and a failure leaves no files behind."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocraft_api.audio import convert
from audiocraft_api.core.errors import ConversionFailed, InvalidRequest

SAMPLE_RATE = 32_000
LENGTHS = (1, 31, 1_000, 16_017, 64_001)
EXACT = ("wav", "wav24", "wav32f", "flac")
FFMPEG = ("mp3", "m4a", "opus")
SHORTEST_MP3 = 47  # samples; shorter audio is padded with silence
MAGIC = {
    "wav": b"RIFF",
    "flac": b"fLaC",
    "ogg": b"OggS",
    "opus": b"OggS",
    "mp3": b"ID3",
    "m4a": b"\x00\x00\x00\x1cftyp",
}


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake ffmpeg first on the PATH; the test writes the script."""
    path = tmp_path / "bin" / "ffmpeg"
    path.parent.mkdir()
    path.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def music(length: int, channels: int) -> np.ndarray:
    """Return [C, T] float32: a low tone on the left, a high tone on the right."""
    time = np.arange(length) / SAMPLE_RATE
    tones = [0.5 * np.sin(2 * np.pi * frequency * time + 0.3) for frequency in (330.0, 1_210.0)]
    return np.stack(tones[:channels]).astype(np.float32)


def decode(audio: bytes, channels: int) -> tuple[np.ndarray, int]:
    """Return the samples [C, T] and the sample rate, decoded by ffmpeg for AAC and by libsndfile otherwise."""
    if audio[4:8] != b"ftyp":
        samples, sample_rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
        return samples.T, sample_rate
    with tempfile.NamedTemporaryFile() as file:
        file.write(audio)
        file.flush()
        command = [convert.ffmpeg_executable(), "-loglevel", "error", "-i", file.name, "-f", "f32le", "-"]
        output = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(output, np.float32).reshape(-1, channels).T, SAMPLE_RATE


def expected_length(name: str, length: int) -> int:
    if name == "opus":
        return math.ceil(length * 48_000 / SAMPLE_RATE)
    return max(length, SHORTEST_MP3) if name == "mp3" else length


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", convert.FORMATS)
def test_every_length_is_decoded_sample_for_sample(name: str, channels: int, temporary_directory: Path) -> None:
    for length in LENGTHS:
        waveform = music(length, channels)
        audio = convert.encode(waveform, SAMPLE_RATE, name)
        decoded, sample_rate = decode(audio, channels)

        assert audio.startswith(MAGIC[convert.FORMATS[name].extension])
        assert sample_rate == (convert.FORMATS[name].sample_rate or SAMPLE_RATE)
        assert decoded.shape == (channels, expected_length(name, length)), length
        if name in EXACT:
            tolerance = {"wav32f": 0.0, "wav24": 2.0**-23}.get(name, 2.0**-16)
            assert np.abs(decoded - waveform).max() <= tolerance
    assert not list(temporary_directory.iterdir())


@pytest.mark.parametrize("name", [name for name in convert.FORMATS if name not in EXACT])
def test_lossy_formats_neither_swap_channels_nor_shift_time(name: str) -> None:
    waveform = music(SAMPLE_RATE, 2)
    decoded, sample_rate = decode(convert.encode(waveform, SAMPLE_RATE, name), 2)
    time = np.arange(decoded.shape[1]) / sample_rate
    for channel, frequency in enumerate((330.0, 1_210.0)):
        wanted = 0.5 * np.sin(2 * np.pi * frequency * time + 0.3)
        inner = slice(sample_rate // 20, -sample_rate // 20)
        error = decoded[channel, inner] - wanted[inner]
        assert 10 * np.log10((wanted**2).mean() / (error**2).mean()) > 20, "over 20 dB, so neither shifted nor swapped"


@pytest.mark.parametrize("name", convert.FORMATS)
def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap(name: str) -> None:
    waveform = music(SAMPLE_RATE, 1) * 4.0  # -2 … 2
    decoded, sample_rate = decode(convert.encode(waveform, SAMPLE_RATE, name), 1)
    if name == "wav32f":
        assert np.array_equal(decoded, waveform)
        return
    time = np.arange(decoded.shape[1]) / sample_rate
    wanted = np.clip(2.0 * np.sin(2 * np.pi * 330.0 * time + 0.3), -1.0, 1.0)
    inner = slice(sample_rate // 20, -sample_rate // 20)
    # A wrapped sample would be wrong by about 2; codecs ring by about a tenth at the corners.
    assert np.abs(decoded[0, inner] - wanted[inner]).max() < (2.0**-14 if name in EXACT else 0.3)


def test_decoded_16_bit_samples_are_encoded_unchanged() -> None:
    every_value = (np.arange(-32_768, 32_768) / 32_768).astype(np.float32)[np.newaxis]
    assert np.array_equal(decode(convert.encode(every_value, SAMPLE_RATE, "wav"), 1)[0], every_value)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", convert.FORMATS)
def test_silence_stays_silent(name: str, channels: int) -> None:
    decoded, _ = decode(convert.encode(np.zeros((channels, 20_000), np.float32), SAMPLE_RATE, name), channels)
    assert np.abs(decoded).max() < 1e-4


@pytest.mark.parametrize("name", convert.FORMATS)
def test_a_waveform_that_is_a_view_is_encoded_as_its_copy(name: str) -> None:
    interleaved = np.ascontiguousarray(music(20_001, 2).T)
    view = decode(convert.encode(interleaved.T, SAMPLE_RATE, name), 2)[0]
    assert np.array_equal(view, decode(convert.encode(music(20_001, 2), SAMPLE_RATE, name), 2)[0])


def test_two_minutes_of_vorbis_do_not_crash_the_process() -> None:
    """Runs in a child process, because libsndfile would crash on one long write."""
    script = (
        "import io, numpy, soundfile\n"
        "from audiocraft_api.audio import convert\n"
        "noise = numpy.random.default_rng(0).standard_normal((2, 120 * 32000)).astype('float32') * 0.1\n"
        "print(soundfile.info(io.BytesIO(convert.encode(noise, 32000, 'ogg'))).frames)\n"
    )
    root = Path(convert.__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout.strip()) == (0, str(120 * 32_000))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", convert.FORMATS)
def test_samples_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    waveform = music(1_000, 2)
    waveform[1, 999] = bad
    with pytest.raises(ConversionFailed, match="invalid samples"):
        convert.encode(waveform, SAMPLE_RATE, name)


@pytest.mark.parametrize("shape", [(1, 0), (0, 100), (3, 100), (100,), (1, 2, 100)])
def test_a_waveform_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConversionFailed):
        convert.encode(np.zeros(shape, np.float32), SAMPLE_RATE, "wav")


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="wav, wav24") as caught:
        convert.encode(music(100, 1), SAMPLE_RATE, "exe")
    assert list(caught.value.errors) == ["output_format"]


@pytest.mark.parametrize("sample_rate", [-1, 0, 1, 7_999, 192_001, 2**31])
@pytest.mark.parametrize("name", convert.FORMATS)
def test_a_sample_rate_out_of_range_is_refused(name: str, sample_rate: int) -> None:
    with pytest.raises(ConversionFailed, match="sample rate"):
        convert.encode(music(100, 1), sample_rate, name)


def test_a_sample_rate_that_libsndfile_refuses_fails_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "MAX_SAMPLE_RATE", 2_000_000)
    with pytest.raises(ConversionFailed, match="converted to flac"):
        convert.encode(music(100, 1), 1_234_567, "flac")


FAULTS = {
    "hangs": "exec sleep 60",
    "is killed": "cat > /dev/null\nkill -9 $$",
    "fails": "cat > /dev/null\necho 'no such codec' >&2\nexit 1",
    "does not read": "exit 1",
    "succeeds and writes nothing": "cat > /dev/null\nexit 0",
    "dies after half of the file": 'cat > /dev/null\nfor last; do :; done\necho half > "$last"\nexit 1',
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FFMPEG)
def test_a_failing_ffmpeg_raises_an_error_and_leaves_no_file(
    name: str, fault: str, ffmpeg: Path, temporary_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ffmpeg.write_text(f"#!/bin/sh\n{FAULTS[fault]}\n")
    with pytest.raises(ConversionFailed) as caught:
        convert.encode(music(100_000, 2), SAMPLE_RATE, name, timeout_seconds=0.2 if fault == "hangs" else 30.0)
    assert caught.value.message == f"The audio could not be converted to {name}."
    assert len(caplog.records) == 1
    assert not list(temporary_directory.iterdir())


def test_the_cause_of_a_failure_is_logged_and_not_in_the_message(
    ffmpeg: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ffmpeg.write_text(f"#!/bin/sh\n{FAULTS['fails']}\n")
    with pytest.raises(ConversionFailed) as caught:
        convert.encode(music(100, 1), SAMPLE_RATE, "mp3")
    assert "no such codec" in caplog.text
    assert "no such codec" not in caught.value.message


def test_without_any_ffmpeg_the_other_formats_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary_directory: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    for name in convert.FORMATS:
        if name in FFMPEG:
            with pytest.raises(ConversionFailed):
                convert.encode(music(1_000, 1), SAMPLE_RATE, name)
        else:
            assert convert.encode(music(1_000, 1), SAMPLE_RATE, name)
    assert not list(temporary_directory.iterdir())


def test_without_space_for_a_temporary_file_the_conversion_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(ConversionFailed):
        convert.encode(music(1_000, 1), SAMPLE_RATE, "mp3")


def test_the_systems_ffmpeg_is_preferred_over_the_bundled_one(
    ffmpeg: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert convert.ffmpeg_executable() == str(ffmpeg)
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = convert.ffmpeg_executable()
    assert "imageio_ffmpeg" in bundled
    assert os.access(bundled, os.X_OK)


def test_each_extension_has_one_media_type() -> None:
    assert convert.MEDIA_TYPES == {
        "wav": "audio/wav",
        "flac": "audio/flac",
        "ogg": "audio/ogg",
        "mp3": "audio/mpeg",
        "m4a": "audio/mp4",
        "opus": "audio/ogg",
    }
