"""Uploaded tunes: every format is decoded, and nothing hostile costs more than a refusal."""

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

SUPPORT = Path(__file__).parents[1] / "support"
NUM_MUTATIONS = 10_000
NUM_MUTATIONS_AT_THE_DOOR = 200


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own directory for temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def make_decoder(**settings: Any) -> UploadDecoder:
    return UploadDecoder(load_config({}, **settings))


def decode(data: bytes, **settings: Any) -> AudioInput:
    return make_decoder(**settings).decode(io.BytesIO(data))


def refusal(data: bytes, **settings: Any) -> str:
    with pytest.raises(InvalidMelody) as caught:
        decode(data, **settings)
    assert caught.value.errors == {"melody": [caught.value.message]}
    return caught.value.message


def wav_tune(seconds: float = 1.0, sample_rate: int = 16_000, channels: int = 1) -> bytes:
    return hostile_audio.audio_file(hostile_audio.tone(seconds, sample_rate, channels), sample_rate, "WAV", "PCM_16")


def run_support(script: str, argument: Path) -> dict[str, Any]:
    """Run a script of tests/support in a process of its own and return what it prints."""
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


def stand_in_for_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let the child run `body` where it would decode."""
    script = tmp_path / "stand_in.py"
    script.write_text(body)
    monkeypatch.setattr(upload_decoder, "__file__", str(script))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", hostile_audio.KINDS, ids="-".join)
def test_a_tune_of_each_kind_comes_back_as_it_was(kind: tuple[str, str], channels: int) -> None:
    tone = hostile_audio.tone(0.8, 16_000, channels)
    melody = decode(hostile_audio.audio_file(tone, 16_000, *kind))

    # Opus files say 48 kHz or what they were made from, as the decoder likes.
    assert melody.sample_rate in ((16_000,) if kind[1] != "OPUS" else (16_000, 48_000))
    assert melody.waveform.dtype == np.float32
    assert melody.waveform.flags.c_contiguous
    seconds = melody.waveform.shape[1] / melody.sample_rate
    assert melody.waveform.shape[0] == channels
    assert seconds == pytest.approx(0.8, abs=0.07)  # block codecs fill their last block
    if kind[1] != "OPUS":
        decoded, made = melody.waveform[:, :12_000], tone.T[:, :12_000]
        for index in range(channels):  # an exchange of the channels would show
            assert np.corrcoef(decoded[index], made[index])[0, 1] > 0.98


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_each_sample_rate_from_8_to_192_khz_is_taken(sample_rate: int) -> None:
    assert decode(wav_tune(0.6, sample_rate)).sample_rate == sample_rate


def test_an_mp3_behind_a_tag_is_taken() -> None:
    tune = hostile_audio.audio_file(hostile_audio.tone(1.0, 16_000, 1), 16_000, "MP3", "MPEG_LAYER_III")
    tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
    assert decode(tag + tune).waveform.shape == (1, 16_000)


def test_samples_beyond_full_scale_are_clipped() -> None:
    samples = np.full((16_000, 1), 7.0, np.float32)
    samples[::2] = -1e30
    waveform = decode(hostile_audio.audio_file(samples, 16_000, "WAV", "FLOAT")).waveform
    assert waveform.min() == -1.0
    assert waveform.max() == 1.0


def test_each_cause_has_its_sentence() -> None:
    nan = hostile_audio.bombs()["WAV of samples that are not numbers"]
    assert refusal(b"") == "The melody file is empty."
    assert refusal(b"\x00\x00\x00 ftypM4A ") == "The melody is not a WAV, MP3, OGG or FLAC file."
    assert refusal(wav_tune()[:40]).startswith("The melody could not be decoded")
    assert refusal(wav_tune(0.4)) == "The melody must be at least 0.5 seconds long."
    assert refusal(wav_tune(2.1), max_melody_seconds=2) == "The melody must not be longer than 2 seconds."
    assert refusal(wav_tune(1.0, 4_000)) == "The melody's sample rate must be from 8,000 to 192,000 Hz."
    assert refusal(wav_tune(1.0, 16_000, 3)) == "The melody must be mono or stereo."
    assert refusal(wav_tune(1.5, 192_000, 2), max_melody_seconds=2).startswith("The melody holds more samples than 2 s")
    assert refusal(nan) == "The melody has samples that are not numbers."


def test_the_longest_tune_allowed_is_taken_whole() -> None:
    assert decode(wav_tune(2.0, 48_000, 2), max_melody_seconds=2).waveform.shape == (2, 96_000)


def test_an_upload_without_end_is_refused_at_the_cap() -> None:
    class Endless(io.RawIOBase):
        num_bytes = 0

        def read(self, size: int = -1) -> bytes:
            self.num_bytes += size
            return b"RIFF\xff\xff\xff\xffWAVE".ljust(size, b"\x00")

    upload = Endless()
    with pytest.raises(PayloadTooLarge, match="10,000,000 bytes"):
        make_decoder(max_upload_bytes=10_000_000).decode(upload)  # type: ignore[arg-type]
    assert upload.num_bytes < 12_000_000


def test_many_mutated_uploads_end_in_a_waveform_or_a_refusal(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    with open(packed, "wb") as file:
        for data in hostile_audio.mutations(NUM_MUTATIONS, seed=20):
            file.write(struct.pack("<Q", len(data)) + data)

    report = run_support("decode_many.py", packed)

    print(f"mutated uploads: {sum(report['causes'].values())}, crashes 0, wrong {report['num_wrong']}, {report}")
    assert sum(report["causes"].values()) == NUM_MUTATIONS
    assert report["causes"]["decoded"] > NUM_MUTATIONS / 10  # the mutations reach the decoders
    assert report["num_wrong"] == 0
    assert report["slowest_seconds"] < 1.0
    assert report["peak_bytes"] < 200e6


def test_mutated_uploads_through_the_front_door_end_in_a_waveform_or_a_refusal(temporary_directory: Path) -> None:
    decoder = make_decoder()

    def outcome(data: bytes) -> str:
        try:
            waveform = decoder.decode(io.BytesIO(data)).waveform
        except InvalidMelody as refused:
            return refused.code
        assert np.isfinite(waveform).all()
        return "decoded"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, hostile_audio.mutations(NUM_MUTATIONS_AT_THE_DOOR, seed=21)))

    print(f"mutated uploads at the door: {len(outcomes)}, decoded {outcomes.count('decoded')}, crashes 0")
    assert len(outcomes) == NUM_MUTATIONS_AT_THE_DOOR
    assert "decoded" in outcomes
    assert not list(temporary_directory.iterdir())


def test_bombs_cost_little_and_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "bombs"
    directory.mkdir()
    bombs = hostile_audio.bombs()
    for name, data in bombs.items():
        (directory / name).write_bytes(data)
    (directory / "a whole minute").write_bytes(wav_tune(60.0, 48_000, 2))

    report = run_support("decode_uploads.py", directory)

    outcomes = report["outcomes"]
    slowest = max(outcomes.values(), key=lambda outcome: outcome["cpu_seconds"])
    print(f"bombs: {len(bombs)}, most processor time {slowest['cpu_seconds']:.2f} s, peak {report['peak_bytes']}")
    assert outcomes.pop("a whole minute")["outcome"] == "decoded 2x2880000"
    # Its header says a second, so a second is what is decoded.
    assert outcomes.pop("MP3 of hours, whose header says a second")["outcome"] == "decoded 1x8000"
    assert {name: outcome["outcome"] for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "invalid_melody")
    assert len(outcomes) >= 20
    assert slowest["cpu_seconds"] < 2.0
    assert report["peak_bytes"]["children"] < 200e6
    assert report["peak_bytes"]["own"] < 200e6


def test_no_playlist_makes_the_service_open_anything(tmp_path: Path, temporary_directory: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav_tune())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        playlists = hostile_audio.playlists(address, str(secret))
        refusals = {name: refusal(data) for name, data in playlists.items()}
        with pytest.raises(BlockingIOError):  # nobody has knocked
            listener.accept()

    print(f"playlists: {len(refusals)}, hits 0")
    assert len(refusals) >= 20
    assert not list(temporary_directory.iterdir())


def test_the_child_can_open_no_file_and_take_no_more_memory_than_its_bounds(tmp_path: Path) -> None:
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
    # macOS does not hold the bound on the address space.
    assert process.stdout.split() == ["OSError", "24"] + ["MemoryError"] * (sys.platform != "darwin")


def test_a_decoder_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary_directory: Path
) -> None:
    pid_file = tmp_path / "pid"
    stand_in_for_the_decoder(
        tmp_path, monkeypatch, f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    assert refusal(wav_tune(), melody_timeout_seconds=1.0).startswith("The melody could not be decoded")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not list(temporary_directory.iterdir())


def test_a_decoder_that_crashes_costs_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_the_decoder(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 11)")
    assert refusal(wav_tune()).startswith("The melody could not be decoded")


def test_a_decoder_that_cannot_start_is_the_services_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_the_decoder(tmp_path, monkeypatch, "import no_such_module")
    with pytest.raises(Unavailable, match="cannot be decoded now"):
        decode(wav_tune())


def test_an_upload_that_waits_too_long_for_a_decoder_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    os.mkfifo(started)
    os.mkfifo(release)
    stand_in_for_the_decoder(
        tmp_path,
        monkeypatch,
        f"open({str(started)!r}, 'w').close()\nopen({str(release)!r}).close()\nprint('{{\"refused\": \"damaged\"}}')",
    )
    decoder = make_decoder(max_melody_decoders=1, melody_timeout_seconds=30)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(decoder.decode, io.BytesIO(wav_tune()))
        started.read_bytes()  # the first upload holds the only decoder now
        monkeypatch.setattr(decoder, "_timeout_seconds", 0.05)
        with pytest.raises(Unavailable, match="Too many melodies") as caught:
            decoder.decode(io.BytesIO(wav_tune()))
        release.write_bytes(b"")
        assert isinstance(first.exception(timeout=30), InvalidMelody)
    assert caught.value.retry_after_seconds > 0


def test_no_room_for_a_temporary_file_is_a_503(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StorageUnavailable):
        decode(wav_tune())


def test_the_child_gets_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    stand_in_for_the_decoder(
        tmp_path,
        monkeypatch,
        f"import os\nopen({str(seen)!r}, 'w').write(' '.join(os.environ))\nprint('{{\"refused\": \"damaged\"}}')",
    )
    monkeypatch.setenv("AUDIOCRAFT_API_SECRET", "hush")
    refusal(wav_tune())
    assert "OPENBLAS_NUM_THREADS" in seen.read_text()
    assert "SECRET" not in seen.read_text()


def test_the_decoder_itself_refuses_what_is_no_tune(tmp_path: Path) -> None:
    """In this process, through the function that the child runs."""
    for data, cause in ((wav_tune(0.1), "too_short"), (b"RIFF", "damaged"), (wav_tune(1.0, 4_000), "sample_rate")):
        path = tmp_path / "upload"
        path.write_bytes(data)
        with open(path, "rb") as source, pytest.raises(upload_decoder.Refused, match=cause):
            upload_decoder.decode(source.fileno(), io.BytesIO(), 60.0)
