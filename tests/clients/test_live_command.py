"""The commands `audiocraft live` and `continue` against a real server with a fake engine."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
from audiocraft_api_client import AudioCraft
from audiocraft_api_client.cli import main, standard_output
from audiocraft_api_client.cli.live_lines import prompts_of
from audiocraft_api_client.errors import InvalidRequestError

from clients.generate import CLIENTS
from support.http import melody_file
from support.keys import ENVIRONMENT_KEY
from support.served import Server, wait_until
from support.terminal import wait_for_text

LIVE = [sys.executable, "-m", "audiocraft_api_client.cli", "live", "-m", "demo-stereo", "--lead", "1"]
SECOND_BYTES = 2 * 2 * 32_000
SOUND_DEVICE = """
class RawOutputStream:
    def __init__(self, rate, channels, dtype):
        self.file = open("played.txt", "w", buffering=1)
        print(rate, channels, dtype, file=self.file)
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, block): print("write", len(block), file=self.file)
    def abort(self): print("abort", file=self.file)
    def start(self): print("start", file=self.file)
"""


@pytest.fixture(autouse=True)
def environ(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the command, which runs in an empty directory with a sound device that writes to a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "sounddevice.py").write_text(SOUND_DEVICE)
    paths = f"{CLIENTS / 'python'}:{tmp_path / 'packages'}"
    own = {"AUDIOCRAFT_URL": server.url, "AUDIOCRAFT_KEY": ENVIRONMENT_KEY, "PYTHONPATH": paths}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return os.environ | own


def play(
    environ: dict[str, str], *arguments: str, lines: str = "", status: int = 0
) -> subprocess.CompletedProcess[bytes]:
    """Play live, with `lines` as standard input, until the command ends with `status`."""
    done = subprocess.run([*LIVE, *arguments], env=environ, input=lines.encode(), capture_output=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done


@contextmanager
def playing(environ: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that plays live and reports in JSON; the block ends it, and it succeeds."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [*LIVE, "--json", *arguments], env=environ, preexec_fn=receive_interrupts, **pipes
    ) as running:
        try:
            yield running
            assert running.wait(60) == 0
        finally:
            running.kill()


def receive_interrupts() -> None:
    """Undo what shells do to programs in the background, which would inherit it: ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def messages_until(running: subprocess.Popen[bytes], last: str, number: int = 1) -> list[dict[str, Any]]:
    """Return what the command reports, up to the message that applies or is of a type, for the given time."""
    assert running.stderr is not None
    found: list[dict[str, Any]] = []
    while sum(last in (message.get("to"), message.get("type")) for message in found) < number:
        found.append(json.loads(running.stderr.readline()))
    return found


def send(running: subprocess.Popen[bytes], *lines: str) -> None:
    assert running.stdin is not None
    running.stdin.write("".join(f"{line}\n" for line in lines).encode())
    running.stdin.flush()


def has_written(num_bytes: int) -> bool:
    """Return whether the file that is being written has this much."""
    return any(part.stat().st_size > num_bytes for part in Path().glob("*.part"))


def result_of(running: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert running.stdout is not None
    return dict(json.loads(running.stdout.read()))


def test_lines_change_the_music_and_the_file_has_all_of_it(environ: dict[str, str], server: Server) -> None:
    with playing(environ, "cello", "-s", "7", "-o", "a.wav") as running:
        send(
            running,
            "2:piano | rain",
            "bpm=90 key=C minor",
            "",
            "volume=11",
            "back soon",
            "key=H major",
            "sad, kill yourself",
        )
        send(running, "pause", "play", "bpm=", "reset")
        messages = messages_until(running, "reset_context")
        frames = max(message["frame"] for message in messages if message.get("type") == "applied")
        wait_until(lambda: has_written((frames + 2) * SECOND_BYTES // 50))
        send(running, "stop")
        messages += messages_until(running, "ended")
        result = result_of(running)
    assert (result["file"], result["seed"]) == ("a.wav", 7)
    assert soundfile.info("a.wav").duration == pytest.approx(result["duration"])
    applied = sorted(message["to"] for message in messages if message.get("type") == "applied")
    assert applied == ["config", "config", "pause", "play", "prompts", "reset_context", "stop"]
    assert any(message.get("suggestion") for message in messages)
    refused = " ".join(message["error"] for message in messages if "error" in message)
    assert all(text in refused for text in ("no control volume", "'soon'", "key"))
    with AudioCraft(server.url, ENVIRONMENT_KEY) as client:
        performance = client.performance(result["performance"])
    weighted = [change.prompts for change in performance.changes if len(change.prompts) == 2]
    assert [prompt.text for prompt in performance.changes[0].prompts] == ["cello"]
    assert {tuple(prompt.weight for prompt in prompts) for prompts in weighted} == {(2.0, 1.0)}
    # The server words the tempo and the key into each text.
    texts = [prompts[1].text for prompts in weighted]
    worded = [(text.startswith("rain"), "90" in text, "C minor" in text) for text in texts]
    assert (True, True, True) in worded
    assert worded[-1] == (True, False, True)
    assert performance.changes[-1].reset_context


def test_going_back_takes_audio_out_of_the_file(environ: dict[str, str]) -> None:
    with playing(environ, "cello", "-o", "a.wav") as running:
        wait_until(lambda: has_written(SECOND_BYTES // 2))
        send(running, "back 0.1 choir")
        messages_until(running, "seek_back")
        send(running, "stop")
        messages_until(running, "ended")
        result = result_of(running)
    assert Path("a.wav").stat().st_size == 44 + round(result["duration"] * SECOND_BYTES)
    assert soundfile.info("a.wav").duration == pytest.approx(result["duration"])


def test_the_end_of_the_input_ends_the_music(environ: dict[str, str]) -> None:
    done = play(environ, "cello")
    assert done.stdout[:4] == b"RIFF"
    assert done.stderr == b""


def test_with_a_duration_the_music_outlasts_the_input(environ: dict[str, str]) -> None:
    done = play(environ, "cello", "-d", "1")
    assert len(done.stdout) == 44 + SECOND_BYTES


def test_an_interrupt_ends_the_music_and_keeps_it(environ: dict[str, str]) -> None:
    with playing(environ, "cello", "-o", "-") as running:
        assert running.stdout is not None
        audio = running.stdout.read(SECOND_BYTES // 2)
        running.send_signal(signal.SIGINT)
        audio += running.stdout.read()
        (ended,) = (message for message in messages_until(running, "ended") if message["type"] == "ended")
    assert len(audio) == 44 + round(ended["duration"] * SECOND_BYTES)


def test_all_of_the_audio_is_written_where_writes_end_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()

    class Unbuffered(io.RawIOBase):
        def write(self, data: Any) -> int:
            return written.write(data[:3])

    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=Unbuffered()))
    standard_output.write(b"0123456789")
    assert written.getvalue() == b"0123456789"


def test_audio_is_played_and_what_is_taken_back_is_not(environ: dict[str, str]) -> None:
    with playing(environ, "cello", "--play") as running:
        messages_until(running, "started")
        wait_until(lambda: "write" in (Path("played.txt").read_text() if Path("played.txt").exists() else ""))
        send(running, "back 0.02")
        messages_until(running, "seek_back")
        send(running, "stop")
        assert result_of(running)["file"] is None
    played = Path("played.txt").read_text().splitlines()
    assert played[0] == "32000 2 int16"
    assert "abort" in played


def test_a_terminal_shows_what_holds_from_when(environ: dict[str, str], terminal_pair: tuple[int, int]) -> None:
    terminal, slave = terminal_pair
    command = [*LIVE, "cello", "-o", "a.wav"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=slave, stderr=slave) as running:
        wait_for_text(terminal, b"started")
        send(running, "rain")
        wait_for_text(terminal, b"prompts holds from")
        send(running, "stop")
        wait_for_text(terminal, b"generate --performance ")
        assert running.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["a | | b"], 2, "must have a text"),
        (["cello", "-o", "a.mp3"], 2, "must end with .wav"),
        (["cello", "-o", "missing/a.wav"], 2, "does not exist"),
        (["cello", "--cfg-coef", "99"], 2, "cfg_coef"),
        (["kill yourself"], 1, "findahelpline"),
        (["cello", "--url", "http://127.0.0.1:1"], 3, "failed"),
    ],
)
def test_errors_come_before_the_music(environ: dict[str, str], arguments: list[str], status: int, text: str) -> None:
    done = play(environ, *arguments, status=status)
    assert text in done.stderr.decode()
    assert list(Path().glob("*.wav*")) == []


def test_only_a_number_before_a_colon_is_a_weight() -> None:
    assert prompts_of("2:piano | rain: heavy|-0.5: drums") == [
        {"text": "piano", "weight": 2.0},
        {"text": "rain: heavy"},
        {"text": "drums", "weight": -0.5},
    ]
    with pytest.raises(InvalidRequestError, match="4 prompts"):
        prompts_of("a|b|c|d|e")


def test_continue_goes_on_from_a_recording(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        assert main(["continue", "string quartet", "a.wav", "-m", "small", "-d", "1", "--json", *arguments]) == 0
        return dict(json.loads(capsys.readouterr().out))

    Path("a.wav").write_bytes(melody_file().read())
    result = run("-o", "b.flac", "--start", "0.5")
    assert result["result"]["recipe"]["prompt"] == "string quartet"
    assert soundfile.info("b.flac").duration == pytest.approx(1.5, abs=0.1)
    run("-o", "c.flac", "--start", "0.5", "--no-include-input")
    assert soundfile.info("c.flac").duration == pytest.approx(1, abs=0.1)
    assert main(["continue", "quartet", "missing.wav"]) == 1
    assert "missing.wav" in capsys.readouterr().err
