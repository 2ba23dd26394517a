"""The command `audiocraft` against a real server with a fake engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import soundfile
from audiocraft_api_client.cli import main

from clients.generate import CLIENTS
from support.http import melody_file
from support.keys import ENVIRONMENT_KEY
from support.served import Server, wait_until
from support.terminal import wait_for_text

PACKAGE = CLIENTS / "python"
STREAM_BYTES = 44 + 2 * 2 * 32_000
COMMAND = [sys.executable, "-m", "audiocraft_api_client.cli"]


@pytest.fixture(autouse=True)
def environ(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the command, which runs in an empty directory."""
    monkeypatch.chdir(tmp_path)
    own = {"AUDIOCRAFT_URL": server.url, "AUDIOCRAFT_KEY": ENVIRONMENT_KEY, "PYTHONPATH": str(PACKAGE)}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return os.environ | own


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """Run a command that ends with `status`; return its output, or what it writes to standard error if it fails."""
    assert main(arguments) == status
    output = capsys.readouterr()
    assert bool(output.err) == bool(status), output.err
    return output.err if status else output.out


def test_generate_saves_a_file_in_the_format_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "generate", "lo-fi beat", "-d", "1", "-o", "beat.mp3") == "beat.mp3\n"
    assert soundfile.info("beat.mp3").format == "MP3"
    shown = run(capsys, "generate", "lo-fi beat", "-d", "1", "-s", "7", "--top-k", "5", "-f", "flac").strip()
    assert soundfile.info(shown).format == "FLAC"
    result = json.loads(run(capsys, "generate", "lo-fi beat", "-d", "1", "-o", "a.wav", "-s", "7", "--json"))
    assert (result["status"], result["file"], result["seed"]) == ("completed", "a.wav", 7)


def test_generate_saves_stems_beside_the_audio(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "generate", "lo-fi beat", "-m", "demo", "-d", "1", "--stems", "-o", "beat.wav") == "beat.wav\n"
    for name in ("drums", "bass", "other", "vocals"):
        assert soundfile.info(f"beat.{name}.wav").frames == soundfile.info("beat.wav").frames


def test_generate_takes_segments_in_place_of_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    segments = ["--segment", "0.5:piano", "--segment", "1:choir: wide"]
    result = json.loads(run(capsys, "generate", *segments, "--negative-prompt", "drums", "-o", "a.wav", "--json"))
    assert result["result"]["recipe"]["segments"] == [
        {"prompt": "piano", "duration": 0.5, "negative_prompt": "drums"},
        {"prompt": "choir: wide", "duration": 1.0, "negative_prompt": "drums"},
    ]
    assert "cannot be combined with segments" in run(capsys, "generate", "piano", *segments, status=2)
    assert "PROMPT" in run(capsys, "generate", status=2)
    assert "PROMPT" in run(capsys, "stream", status=2)


@pytest.mark.parametrize("value", ["piano", "x:piano", "nan:piano"])
def test_a_segment_without_seconds_is_refused(capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "--segment", value])
    assert "SECONDS:PROMPT, such as 8:piano" in capsys.readouterr().err


def test_generate_writes_to_standard_output(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["generate", "lo-fi beat", "-d", "1", "-o", "-"]) == 0
    assert capsysbinary.readouterr().out[:4] == b"RIFF"


def test_melody_follows_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("melody.wav").write_bytes(melody_file().read())
    result = json.loads(run(capsys, "melody", "string quartet", "melody.wav", "-d", "1", "-o", "a.ogg", "--json"))
    assert result["result"]["recipe"]["melody"]
    assert "melody.xyz" in run(capsys, "melody", "string quartet", "melody.xyz", status=1)


def test_melody_follows_notes(capsys: pytest.CaptureFixture[str]) -> None:
    notes = ("melody", "string quartet", "--notes", "C4:1 E4:1", "--bpm", "90", "-d", "1", "-o", "b.ogg", "--json")
    recipe = json.loads(run(capsys, *notes))["result"]["recipe"]
    assert (recipe["notes"], recipe["bpm"]) == ("C4:1 E4:1", 90)
    for given in ((), ("melody.wav", "--notes", "C4:1")):
        assert "either as a FILE or with --notes" in run(capsys, "melody", "string quartet", *given, status=2)


def test_stream_writes_audio(capsys: pytest.CaptureFixture[str], environ: dict[str, str]) -> None:
    assert run(capsys, "stream", "lo-fi beat", "-d", "1", "-o", "a.wav") == "a.wav\n"
    assert Path("a.wav").stat().st_size == STREAM_BYTES
    piped = subprocess.run([*COMMAND, "stream", "lo-fi beat", "-d", "1"], env=environ, capture_output=True, check=True)
    assert len(piped.stdout) == STREAM_BYTES
    assert piped.stderr == b""


@pytest.mark.usefixtures("hold")
def test_only_a_terminal_gets_progress_and_never_audio(
    environ: dict[str, str], hold: Path, terminal_pair: tuple[int, int]
) -> None:
    terminal, slave = terminal_pair
    generate = [*COMMAND, "generate", "hold after 0", "-d", "1", "-o", "-"]
    with subprocess.Popen(generate, env=environ, stdout=subprocess.PIPE, stderr=slave) as running:
        wait_for_text(terminal, b"0%")
        hold.unlink()
        output, _ = running.communicate(timeout=60)
    assert (running.returncode, output[:4]) == (0, b"RIFF")
    for arguments in (["stream", "lo-fi beat"], ["generate", "lo-fi beat", "-o", "-"]):
        refused = subprocess.run([*COMMAND, *arguments], env=environ, stdout=slave, stderr=subprocess.PIPE, timeout=60)
        assert (refused.returncode, b"not written to a terminal" in refused.stderr) == (2, True)


def test_a_player_that_leaves_ends_the_stream(environ: dict[str, str]) -> None:
    shell = f"{sys.executable} -m audiocraft_api_client.cli stream 'lo-fi beat' -d 30 | head -c 10"
    done = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, timeout=60)
    assert (done.stdout[:4], done.stderr) == (b"RIFF", b"")


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "models").splitlines()
    assert any(line.startswith("small ") for line in lines)
    assert {model["name"] for model in json.loads(run(capsys, "models", "--json"))} == {
        line.split()[0] for line in lines
    }


@pytest.mark.usefixtures("hold")
def test_tasks_are_listed_shown_and_canceled(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    fields = {"prompt": "hold after 0", "duration": 1}
    task_id = server.post("/generate-async", json=fields, headers={"X-API-Key": ENVIRONMENT_KEY}).json()["task_id"]
    assert run(capsys, "tasks").startswith(task_id)
    assert json.loads(run(capsys, "tasks", "--json", "--limit", "1"))[0]["task_id"] == task_id
    for arguments in (["show", "--json", task_id], ["show", task_id, "--json"], ["--json", "show", task_id]):
        assert json.loads(run(capsys, "tasks", *arguments))["status"] == "processing"
    assert task_id in run(capsys, "tasks", "cancel", task_id)
    assert run(capsys, "tasks", "wait", task_id, status=1) == "audiocraft: The task was canceled.\n"
    with pytest.raises(SystemExit, match="2"):
        main(["tasks", "show"])


def test_the_exit_status_tells_what_went_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "duration" in run(capsys, "generate", "a", "-d", "999", status=2)
    error = json.loads(run(capsys, "generate", "a", "-d", "999", "--json", status=2))
    assert (error["code"], list(error["errors"])) == ("invalid_request", ["duration"])
    assert "must end with" in run(capsys, "generate", "a", "-o", "a.txt", status=2)
    assert "does not exist" in run(capsys, "generate", "a", "-o", "missing/a.wav", status=2)
    failed = json.loads(run(capsys, "generate", "a", "--play", "--json", status=1))
    assert failed["code"] == "client_failed"
    assert "sounddevice" in failed["error"]
    assert "findahelpline" in run(capsys, "generate", "sad piano, kill yourself", status=1)
    run(capsys, "generate", "fail after 0", "-d", "1", status=1)
    run(capsys, "tasks", "show", "unknown", status=1)
    assert "failed" in run(capsys, "models", "--url", "http://127.0.0.1:1", status=3)
    monkeypatch.setenv("AUDIOCRAFT_KEY", "wrong")
    assert "API key" in run(capsys, "models", status=4)
    with pytest.raises(SystemExit) as usage:
        main(["generate", "a", "-d", "nan"])
    assert usage.value.code == 2
    assert list(Path().iterdir()) == []


def _receive_interrupts() -> None:
    """Undo what shells do to programs in the background, which would inherit it: ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.usefixtures("hold")
def test_an_interrupted_generation_is_canceled(
    environ: dict[str, str], server: Server, terminal_pair: tuple[int, int]
) -> None:
    def newest() -> dict[str, Any]:
        (task,) = server.get("/tasks?limit=1", headers={"X-API-Key": ENVIRONMENT_KEY}).json()["tasks"]
        return dict(task)

    terminal, slave = terminal_pair
    command = [*COMMAND, "generate", "hold after 0", "-d", "2"]
    with subprocess.Popen(command, env=environ, stderr=slave, preexec_fn=_receive_interrupts) as running:
        try:
            wait_for_text(terminal, b"\x1b[K")
            running.send_signal(signal.SIGINT)
            assert running.wait(30) == 130
        finally:
            running.kill()
    assert os.read(terminal, 1000).endswith(b"\r\x1b[K")
    wait_until(lambda: newest()["status"] == "canceled")


def completed(tmp_path: Path, *words: str) -> set[str]:
    """Return what bash offers for the last word."""
    script = tmp_path / "completion.bash"
    program = f"""
        source {script}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        _audiocraft
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-euc", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "completion.bash").write_text(run(capsys, "completion", "bash"))
    commands = {"generate", "melody", "continue", "stream", "live", "models", "tasks", "completion"}
    assert completed(tmp_path, "audiocraft", "") == commands
    assert completed(tmp_path, "audiocraft", "generate", "--neg") == {"--negative-prompt"}
    assert completed(tmp_path, "audiocraft", "stream", "--format", "wav") == {"wav", "wav24", "wav32f"}
    assert {"show", "cancel", "--limit"} <= completed(tmp_path, "audiocraft", "tasks", "")
    assert run(capsys, "completion", "zsh").endswith((tmp_path / "completion.bash").read_text())
    assert "-l negative-prompt" in run(capsys, "completion", "fish")


def test_the_package_can_be_installed_alone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", PACKAGE, source], check=True)
    subprocess.run([*build, source], check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    names = {str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("audiocraft_api_client/**/*.py")}
    assert names | {"audiocraft_api_client/py.typed"} <= set(archive.namelist())
    program = "import sys, audiocraft_api_client.cli; print(*{name.split('.')[0] for name in sys.modules})"
    environ = {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "audiocraft_api", "flask", "numpy", "soundfile"}
