"""Uploaded melodies: each refusal, and the bounds of the process that decodes."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from audiocraft_api.audio import upload_decoder
from audiocraft_api.core.errors import InvalidMelody, PayloadTooLarge, StorageUnavailable, Unavailable
from support import hostile_audio, hostile_containers
from support.uploads import decode, decode_here, make_decoder, refusal


def wav_melody(seconds: float = 1.0, sample_rate: int = 16_000, channels: int = 1) -> bytes:
    return hostile_audio.audio_file(hostile_audio.tone(seconds, sample_rate, channels), sample_rate, "WAV", "PCM_16")


def write_program(directory: Path, body: str) -> Path:
    """Write a program that runs in place of the decoder."""
    program = directory / "fake_decoder.py"
    program.write_text(body)
    return program


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_sample_rates_from_8_to_192_khz_are_accepted(sample_rate: int) -> None:
    assert decode_here(wav_melody(0.6, sample_rate)).sample_rate == sample_rate


def test_samples_beyond_full_scale_are_clipped() -> None:
    samples = np.full((16_000, 1), 7.0, np.float32)
    samples[::2] = -1e30
    waveform = decode(hostile_audio.audio_file(samples, 16_000, "WAV", "FLOAT")).waveform
    assert waveform.min() == -1.0
    assert waveform.max() == 1.0


def test_each_cause_has_its_message() -> None:
    nan = hostile_audio.wav(np.full(16_000, np.nan, "<f4").tobytes(), tag=3, bits=32)
    assert refusal(b"") == "The melody file is empty."
    assert refusal(b"MThd") == "This file is a MIDI file, not audio. Upload the recording itself."
    assert refusal(bytes(100)) == (
        "The melody must be a WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A, MP4 or WebM file. "
        "This file is something else, or its start is damaged."
    )
    assert refusal(wav_melody()[:44]).startswith("The melody file could not be read")
    assert refusal(wav_melody(0.4)) == "The melody must be at least 0.5 seconds long."
    assert refusal(wav_melody(2.1), max_melody_seconds=2) == "The melody must be at most 2 seconds long."
    assert refusal(wav_melody(1.0, 4_000)) == "The melody's sample rate must be between 8,000 and 192,000 Hz."
    assert refusal(wav_melody(1.0, 16_000, 3)) == "The melody must be mono or stereo."
    assert refusal(wav_melody(1.5, 192_000, 2), max_melody_seconds=2).startswith("The melody has more samples than 2 s")
    assert refusal(nan) == "The melody contains invalid samples (NaN or infinity). Export it again."


def test_a_melody_of_the_maximum_length_is_accepted_whole() -> None:
    assert decode(wav_melody(2.0, 48_000, 2), max_melody_seconds=2).waveform.shape == (2, 96_000)


def test_an_endless_upload_is_refused_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        num_bytes = 0

        def read(self, size: int = -1) -> bytes:
            self.num_bytes += size
            return b"RIFF\xff\xff\xff\xffWAVE".ljust(size, b"\x00")

    upload = Endless()
    with pytest.raises(PayloadTooLarge, match="10,000,000 bytes"):
        make_decoder(max_upload_bytes=10_000_000).decode(upload)  # type: ignore[arg-type]
    assert upload.num_bytes < 12_000_000


def test_playlists_do_not_make_the_service_open_files_or_connections(tmp_path: Path, temporary_directory: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav_melody())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        playlists = hostile_audio.playlists(address, str(secret))
        refusals = {name: refusal(data) for name, data in playlists.items()}
        for data in playlists.values():  # the decoder's own list of formats, where files and connections can be opened
            with pytest.raises(upload_decoder.Refused):
                decode_here(data)
        with pytest.raises(BlockingIOError):  # no connection has arrived
            listener.accept()

    assert len(refusals) >= 20
    for name in ("HLS", "DASH", "ffconcat", "M3U", "PLS", "ASX", "XSPF", "SMIL"):
        assert refusals[name] == "This file is a playlist, not audio. Upload the recording itself."
    assert not list(temporary_directory.iterdir())


def test_audio_in_another_file_is_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.pcm"
    secret.write_bytes(wav_melody(2.0) * 2)
    data = hostile_containers.mov_with_external_audio(tmp_path, secret)
    path = tmp_path / "reference.mov"
    path.write_bytes(data)
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(path), options=options) as container:  # shows that the reference is valid
        assert next(container.decode(audio=0)).samples > 0

    assert refusal(data).startswith("The melody file could not be read")
    with pytest.raises(upload_decoder.Refused):
        decode_here(data)


def test_the_child_can_neither_open_files_nor_exceed_its_memory_limit(tmp_path: Path) -> None:
    script = f"""
import runpy
decoder = runpy.run_path({upload_decoder.__file__!r})
decoder["limit_resources"](60.0)
try:
    open({str(tmp_path / "new")!r}, "w")
except OSError as error:
    print(type(error).__name__, error.errno)
try:
    bytearray(1 << 30)
except MemoryError:
    print("MemoryError")
"""
    process = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    # macOS does not enforce the limit on the address space.
    assert process.stdout.split() == ["OSError", "24"] + ["MemoryError"] * (sys.platform != "darwin")


def test_a_decoder_that_hangs_is_killed(tmp_path: Path, temporary_directory: Path) -> None:
    pid_file = tmp_path / "pid"
    program = write_program(
        tmp_path, f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    assert refusal(wav_melody(), program=program, melody_timeout_seconds=3.0).startswith(
        "The melody file could not be read"
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not list(temporary_directory.iterdir())


def test_an_upload_that_crashes_the_decoder_is_refused(tmp_path: Path) -> None:
    program = write_program(tmp_path, "import os\nos.kill(os.getpid(), 11)")
    assert refusal(wav_melody(), program=program).startswith("The melody file could not be read")


def test_a_decoder_that_cannot_start_is_unavailable(tmp_path: Path) -> None:
    program = write_program(tmp_path, "import no_such_module")
    with pytest.raises(Unavailable, match="cannot decode uploads at the moment"):
        decode(wav_melody(), program=program)


def test_an_upload_that_waits_too_long_for_a_decoder_is_refused_with_retry_after(tmp_path: Path) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    os.mkfifo(started)
    os.mkfifo(release)
    program = write_program(
        tmp_path,
        f"open({str(started)!r}, 'w').close()\nopen({str(release)!r}).close()\nprint('{{\"refused\": \"damaged\"}}')",
    )
    decoder = make_decoder(program, queue_timeout_seconds=0.05, max_melody_decoders=1, melody_timeout_seconds=30)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(decoder.decode, io.BytesIO(wav_melody()))
        started.read_bytes()  # the first upload occupies the only decoder
        with pytest.raises(Unavailable, match="too many uploads") as caught:
            decoder.decode(io.BytesIO(wav_melody()))
        release.write_bytes(b"")
        assert isinstance(first.exception(timeout=30), InvalidMelody)
    assert caught.value.retry_after_seconds > 0


def test_without_space_for_a_temporary_file_storage_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StorageUnavailable):
        decode(wav_melody())


def test_secrets_in_the_environment_are_not_passed_to_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    program = write_program(
        tmp_path,
        f"import os\nopen({str(seen)!r}, 'w').write(' '.join(os.environ))\nprint('{{\"refused\": \"damaged\"}}')",
    )
    monkeypatch.setenv("AUDIOCRAFT_API_SECRET", "hush")
    refusal(wav_melody(), program=program)
    assert "OPENBLAS_NUM_THREADS" in seen.read_text()
    assert "SECRET" not in seen.read_text()


def test_the_decoder_refuses_files_without_usable_audio(tmp_path: Path) -> None:
    """Calls the child's function in this process."""
    for data, cause in ((wav_melody(0.1), "too_short"), (b"RIFF", "unknown"), (wav_melody(1.0, 4_000), "sample_rate")):
        path = tmp_path / "upload"
        path.write_bytes(data)
        with open(path, "rb") as source, pytest.raises(upload_decoder.Refused, match=cause):
            upload_decoder.decode(source.fileno(), io.BytesIO(), 60.0)
