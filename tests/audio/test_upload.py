"""Uploaded melodies: every format is decoded, and hostile files are refused at little cost."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audiocraft_api
from audiocraft_api.audio import upload_decoder
from audiocraft_api.audio.upload import UploadDecoder
from audiocraft_api.config import load_config
from audiocraft_api.core.errors import InvalidMelody, PayloadTooLarge, StorageUnavailable, Unavailable
from audiocraft_api.core.params import AudioInput
from support import hostile_audio

DECODER = Path(upload_decoder.__file__)
SUPPORT = Path(__file__).parents[1] / "support"
NUM_MUTATIONS = 10_000
NUM_MUTATED_UPLOADS = 200


def make_decoder(program: Path = DECODER, queue_timeout_seconds: float | None = None, **settings: Any) -> UploadDecoder:
    config = load_config({}, **settings).audio
    return UploadDecoder(config, program=program, queue_timeout_seconds=queue_timeout_seconds)


def decode(data: bytes, **options: Any) -> AudioInput:
    return make_decoder(**options).decode(io.BytesIO(data))


def refusal(data: bytes, **options: Any) -> str:
    """Return the message that an upload is refused with."""
    with pytest.raises(InvalidMelody) as caught:
        decode(data, **options)
    assert caught.value.errors == {"melody": [caught.value.message]}
    return caught.value.message


def wav_melody(seconds: float = 1.0, sample_rate: int = 16_000, channels: int = 1) -> bytes:
    return hostile_audio.audio_file(hostile_audio.tone(seconds, sample_rate, channels), sample_rate, "WAV", "PCM_16")


def run_support(script: str, argument: Path) -> dict[str, Any]:
    """Run a script of tests/support in a child process and return the JSON that it prints."""
    environment = {"PYTHONPATH": str(Path(audiocraft_api.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(SUPPORT / script), str(argument)],
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def write_program(directory: Path, body: str) -> Path:
    """Write a program that runs in place of the decoder."""
    program = directory / "fake_decoder.py"
    program.write_text(body)
    return program


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", hostile_audio.KINDS, ids="-".join)
def test_a_melody_of_each_kind_is_decoded_to_its_samples(kind: tuple[str, str], channels: int) -> None:
    tone = hostile_audio.tone(0.8, 16_000, channels)
    melody = decode(hostile_audio.audio_file(tone, 16_000, *kind))

    # Depending on the decoder, Opus has 48 kHz or the rate of its source.
    assert melody.sample_rate in ((16_000,) if kind[1] != "OPUS" else (16_000, 48_000))
    assert melody.waveform.dtype == np.float32
    assert melody.waveform.flags.c_contiguous
    seconds = melody.waveform.shape[1] / melody.sample_rate
    assert melody.waveform.shape[0] == channels
    assert seconds == pytest.approx(0.8, abs=0.07)  # block codecs pad their last block
    if kind[1] != "OPUS":
        decoded, expected = melody.waveform[:, :12_000], tone.T[:, :12_000]
        for index in range(channels):  # shows that the channels are not swapped
            assert np.corrcoef(decoded[index], expected[index])[0, 1] > 0.98


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_sample_rates_from_8_to_192_khz_are_accepted(sample_rate: int) -> None:
    assert decode(wav_melody(0.6, sample_rate)).sample_rate == sample_rate


def test_an_mp3_after_a_tag_is_accepted() -> None:
    melody = hostile_audio.audio_file(hostile_audio.tone(1.0, 16_000, 1), 16_000, "MP3", "MPEG_LAYER_III")
    tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
    assert decode(tag + melody).waveform.shape == (1, 16_000)


def test_samples_beyond_full_scale_are_clipped() -> None:
    samples = np.full((16_000, 1), 7.0, np.float32)
    samples[::2] = -1e30
    waveform = decode(hostile_audio.audio_file(samples, 16_000, "WAV", "FLOAT")).waveform
    assert waveform.min() == -1.0
    assert waveform.max() == 1.0


def test_each_cause_has_its_message() -> None:
    nan = hostile_audio.bombs()["WAV of NaN samples"]
    assert refusal(b"") == "The melody file is empty."
    assert refusal(b"\x00\x00\x00 ftypM4A ") == "The melody file must be a WAV, MP3, Ogg or FLAC file."
    assert refusal(wav_melody()[:40]).startswith("The melody file could not be read")
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


@pytest.mark.timing
def test_many_mutated_files_end_in_a_waveform_or_a_refusal(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    with open(packed, "wb") as file:
        for data in hostile_audio.mutations(NUM_MUTATIONS, seed=20):
            file.write(struct.pack("<Q", len(data)) + data)

    report = run_support("decode_many.py", packed)

    assert sum(report["causes"].values()) == NUM_MUTATIONS
    assert report["causes"]["decoded"] > NUM_MUTATIONS / 10  # the mutations reach the decoders
    assert report["num_wrong"] == 0
    assert report["slowest_seconds"] < 3.0
    assert report["peak_bytes"] < 200e6


def test_mutated_uploads_to_the_real_decoder_end_in_a_waveform_or_a_refusal(temporary_directory: Path) -> None:
    decoder = make_decoder()

    def outcome(data: bytes) -> str:
        try:
            waveform = decoder.decode(io.BytesIO(data)).waveform
        except InvalidMelody as refused:
            return refused.code
        assert np.isfinite(waveform).all()
        return "decoded"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, hostile_audio.mutations(NUM_MUTATED_UPLOADS, seed=21)))

    assert len(outcomes) == NUM_MUTATED_UPLOADS
    assert "decoded" in outcomes
    assert not list(temporary_directory.iterdir())


@pytest.mark.timing
def test_decompression_bombs_are_refused_at_little_cost(tmp_path: Path) -> None:
    directory = tmp_path / "bombs"
    directory.mkdir()
    bombs = hostile_audio.bombs()
    for name, data in bombs.items():
        (directory / name).write_bytes(data)
    (directory / "a whole minute").write_bytes(wav_melody(60.0, 48_000, 2))

    report = run_support("decode_uploads.py", directory)

    outcomes = report["outcomes"]
    slowest = max(outcomes.values(), key=lambda outcome: outcome["cpu_seconds"])
    assert outcomes.pop("a whole minute")["outcome"] == "decoded 2x2880000"
    # The decoder stops at the second that the header announces.
    assert outcomes.pop("MP3 of hours whose header says one second")["outcome"] == "decoded 1x8000"
    assert {name: outcome["outcome"] for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "invalid_melody")
    assert len(outcomes) >= 20
    assert slowest["cpu_seconds"] < 3.0
    assert report["peak_bytes"]["children"] < 200e6
    assert report["peak_bytes"]["own"] < 200e6


def test_playlists_do_not_make_the_service_open_files_or_connections(tmp_path: Path, temporary_directory: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav_melody())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        playlists = hostile_audio.playlists(address, str(secret))
        refusals = {name: refusal(data) for name, data in playlists.items()}
        with pytest.raises(BlockingIOError):  # no connection has arrived
            listener.accept()

    assert len(refusals) >= 20
    assert not list(temporary_directory.iterdir())


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
    with pytest.raises(Unavailable, match="cannot decode melodies at the moment"):
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
        with pytest.raises(Unavailable, match="too many melodies") as caught:
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
    for data, cause in ((wav_melody(0.1), "too_short"), (b"RIFF", "damaged"), (wav_melody(1.0, 4_000), "sample_rate")):
        path = tmp_path / "upload"
        path.write_bytes(data)
        with open(path, "rb") as source, pytest.raises(upload_decoder.Refused, match=cause):
            upload_decoder.decode(source.fileno(), io.BytesIO(), 60.0)
