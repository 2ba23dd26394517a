"""The documented commands and programs do what the pages say: they run as printed, against a real server and model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from audiocraft_api.config import variable_name
from support.browser import open_browser, serve_files
from support.documents import code_blocks, page, section
from support.served import ROOT, Server, serve

SHOWN_SERVER = "http://localhost:5000"
BASH = ["bash", "-euc"]
NODE = ["node", "--input-type=module", "--eval"]


@pytest.fixture(scope="module")
def server(demo_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), checkpoints_dir=demo_checkpoints, offline=True) as running:
        yield running


def run(program: list[str], text: str, server: Server, directory: Path, environ: dict[str, str] | None = None) -> str:
    """Run a code block against the server; return its output. It must succeed, and print nothing to stderr."""
    assert SHOWN_SERVER in text
    text = text.replace(SHOWN_SERVER, server.url)
    done = subprocess.run([*program, text], cwd=directory, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def seconds_of(path: Path) -> float:
    return float(soundfile.info(path).duration)


def test_the_readme_generates_and_streams(server: Server, tmp_path: Path) -> None:
    for heading in ("Generate audio", "Stream audio"):
        (block,) = code_blocks(section("README.md", heading), "bash")
        assert run(BASH, block, server, tmp_path) == ""
    assert seconds_of(tmp_path / "beat.mp3") == pytest.approx(2, abs=0.1)
    assert seconds_of(tmp_path / "stream.mp3") == pytest.approx(2, abs=0.1)


def test_the_tutorial_generates_and_follows_a_melody(server: Server, tmp_path: Path) -> None:
    health, *blocks = code_blocks(page("docs/getting-started.md"), "bash")
    assert json.loads(run(BASH, health, server, tmp_path))["status"] == "healthy"
    *_, with_melody = [run(BASH, block, server, tmp_path) for block in blocks]
    assert json.loads((tmp_path / "response.json").read_text())["success"] is True
    assert seconds_of(tmp_path / "clip.mp3") == pytest.approx(3, abs=0.1)
    assert json.loads(with_melody)["model"] == "demo-melody"


def test_the_page_of_the_tutorial_plays_music(server: Server, tmp_path: Path) -> None:
    (player,) = code_blocks(page("docs/getting-started.md"), "html")
    assert SHOWN_SERVER in player
    (tmp_path / "player.html").write_text(player.replace(SHOWN_SERVER, server.url))
    with serve_files(tmp_path) as url, open_browser(tmp_path) as browser:
        shown = browser.new_page()
        shown.goto(f"{url}/player.html")
        shown.get_by_role("button").click()
        shown.get_by_text("Done.").wait_for(timeout=60_000)
        seconds = shown.evaluate(
            """async () => {
              const audio = document.querySelector("audio");
              audio.muted = true;
              await audio.play();
              return audio.duration;
            }"""
        )
    assert seconds == pytest.approx(5, abs=0.1)


def test_the_examples_of_generating_download_audio(server: Server, tmp_path: Path) -> None:
    text = page("docs/generating.md")
    (generate,) = code_blocks(text.partition("\n## ")[0], "bash")
    assert json.loads(run(BASH, generate, server, tmp_path))["recipe"]["seed"] == 7

    (download,) = code_blocks(section("docs/generating.md", "Downloading"), "bash")
    run(BASH, download, server, tmp_path)
    (saved,) = tmp_path.glob("*.mp3")
    assert seconds_of(saved) == pytest.approx(2, abs=0.1)
    assert seconds_of(tmp_path / "cello.ogg") == pytest.approx(1, abs=0.1)

    saved.rename(tmp_path / "melody.mp3")
    (follow,) = code_blocks(section("docs/generating.md", "Following a melody"), "bash")
    assert json.loads(run(BASH, follow, server, tmp_path))["model"] == "demo-melody"
    (notes,) = code_blocks(section("docs/controls.md", "Notes"), "bash")
    assert json.loads(run(BASH, notes, server, tmp_path))["recipe"]["bpm"] == 96

    (browser_code,) = code_blocks(section("docs/generating.md", "Downloading"), "js")
    stand_in = "const audio = {}; globalThis.document = {querySelector: () => audio};\n"
    url = run(NODE, f"{stand_in}{browser_code}console.log(audio.src);", server, tmp_path).strip()
    assert server.get(url.removeprefix(server.url)).headers["Content-Type"] == "audio/wav"


def test_curl_submits_polls_follows_downloads_and_cancels_a_task(server: Server, tmp_path: Path) -> None:
    (block,) = code_blocks(page("docs/tasks.md"), "bash")
    polled, *lines = [line for line in run(BASH, block, server, tmp_path).splitlines() if line.strip()]
    assert json.loads(polled)["status"] in ("processing", "completed")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert events[-1]["status"] == "completed"
    canceled, listed = (json.loads(line) for line in lines[-2:])
    assert canceled == events[-1]
    assert listed["tasks"][0]["task_id"] == canceled["task_id"]
    (saved,) = tmp_path.glob("*.mp3")
    assert seconds_of(saved) == pytest.approx(3, abs=0.1)


def test_javascript_polls_one_task_and_cancels_another(server: Server, tmp_path: Path) -> None:
    (block,) = code_blocks(page("docs/tasks.md"), "js")
    lines = run(NODE, block, server, tmp_path).splitlines()
    completed = next(index for index, line in enumerate(lines) if line.startswith("completed /audio/"))
    assert server.get(lines[completed].split()[1]).status_code == 200
    assert lines[-1] == "canceled"
    assert set(lines[completed + 1 : -1]) <= {"queued", "processing"}


def test_curl_and_javascript_receive_a_stream(server: Server, tmp_path: Path) -> None:
    (shell,) = code_blocks(page("docs/streaming.md"), "bash")
    run(BASH, shell, server, tmp_path)
    assert seconds_of(tmp_path / "stream.mp3") == pytest.approx(3, abs=0.1)
    (script,) = code_blocks(section("docs/streaming.md", "HTTP"), "js")
    received = run(NODE, script, server, tmp_path).split()
    assert int(received[0]) == 44 + 2 * 32_000 * 2


def test_a_page_receives_a_stream_over_a_websocket(server: Server, tmp_path: Path) -> None:
    (script,) = code_blocks(section("docs/streaming.md", "WebSocket"), "js")
    script = script.replace("ws://localhost:5000", server.url.replace("http", "ws"))
    with open_browser(tmp_path) as browser:
        shown = browser.new_page()
        messages: list[str] = []
        shown.on("console", lambda message: messages.append(message.text.split()[0]))
        num_bytes = shown.evaluate(
            f"""async () => {{
              {script}
              await new Promise((resolve) => socket.onclose = resolve);
              return blocks.reduce((total, block) => total + block.size, 0);
            }}"""
        )
    assert num_bytes == 44 + 2 * 32_000 * 2
    assert messages[0] == "accepted"
    assert messages[-1] == "done"


def test_python_and_javascript_play_live(server: Server, tmp_path: Path) -> None:
    (program,) = code_blocks(page("docs/live.md"), "python")
    program = program.replace("ws://localhost:5000", server.url.replace("http", "ws"))
    lines = run([sys.executable, "-c"], program, server, tmp_path).splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("applied")][:2] == [
        ["applied", "prompts"],
        ["applied", "config"],
    ]
    assert lines[-1] == "the same audio: True"

    (script,) = code_blocks(page("docs/live.md"), "js")
    script = script.replace("ws://localhost:5000", server.url.replace("http", "ws"))
    with open_browser(tmp_path) as browser:
        num_bytes = browser.new_page().evaluate(
            f"""async () => {{
              {script}
              await new Promise((resolve) => socket.onclose = resolve);
              return blocks.reduce((total, block) => total + block.size, 0);
            }}"""
        )
    assert num_bytes == 3 * 32_000 * 2


def test_a_key_is_created_used_listed_and_revoked(demo_checkpoints: Path, tmp_path: Path) -> None:
    keys = section("docs/security.md", "Keys")
    settings = {"checkpoints_dir": demo_checkpoints, "state_db": tmp_path / "state.sqlite3"}
    with serve(tmp_path, offline=True, keys="k" * 40, **settings) as server:
        (shell,) = code_blocks(keys, "bash")
        shell = shell.replace(SHOWN_SERVER, server.url).replace(".venv/bin/python", sys.executable)
        environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
        done = subprocess.run(
            [*BASH, shell], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True
        )
        response, _, listed, revoked = done.stdout.splitlines()
        assert json.loads(response)["success"] is True
        assert listed.split()[1:3] == ["studio", "usable"]
        assert revoked.split()[0] == listed.split()[0]
        assert "revoked" in revoked

        (script,) = code_blocks(keys, "js")
        lines = run(NODE, f"const key = '{'k' * 40}';\n{script}", server, tmp_path).splitlines()
        assert [line for line in lines if '"status": "completed"' in line]
        assert lines[-1].startswith("blob:")


def test_the_javascript_client_does_what_its_page_shows(server: Server, tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "audiocraft-api-client").symlink_to(ROOT / "clients" / "javascript")
    use, live, handle = code_blocks(section("docs/clients.md", "JavaScript"), "js")
    generated, *progress, streamed = run(NODE, use, server, tmp_path).splitlines()
    assert server.get(generated.removeprefix(server.url)).headers["Content-Type"] == "audio/mpeg"
    assert progress[-1].startswith("completed")
    assert int(streamed.split()[0]) == 44 + 2 * 32_000 * 2
    # Node 20 has a WebSocket only with the switch.
    node_22 = ["node", "--experimental-websocket", "--no-warnings", *NODE[1:]]
    changed, url = run(node_22, live, server, tmp_path).splitlines()
    assert int(changed.split()[-1]) > 25
    assert server.get(url).headers["Content-Type"] == "audio/mpeg"
    assert "duration" in run(NODE, handle, server, tmp_path)
    (first,) = code_blocks(page("clients/javascript/README.md"), "js")
    assert run(NODE, first, server, tmp_path).startswith(f"{server.url}/audio/")


def test_the_python_client_does_what_its_page_shows(server: Server, tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT / "clients" / "python")}
    synchronous, asynchronous, live, handle = code_blocks(section("docs/clients.md", "Python"), "python")
    python = [sys.executable, "-c"]
    run(python, synchronous, server, tmp_path, environ)
    for name in ("beat.mp3", "pads.wav", "stream.ogg"):
        assert seconds_of(tmp_path / name) == pytest.approx(2, abs=0.1)
    assert run(python, asynchronous, server, tmp_path, environ).split() == ["2.0", "2.0"]
    assert run(python, live, server, tmp_path, environ).split() == ["3.0"]
    assert seconds_of(tmp_path / "live.mp3") == pytest.approx(3, abs=0.1)
    assert "duration" in run(python, handle, server, tmp_path, environ)
    (tmp_path / "beat.mp3").unlink()
    (first,) = code_blocks(page("clients/python/README.md"), "python")
    run(python, first, server, tmp_path, environ)
    assert seconds_of(tmp_path / "beat.mp3") == pytest.approx(2, abs=0.1)


def test_the_command_line_does_what_its_page_shows(server: Server, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "audiocraft"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m audiocraft_api_client.cli "$@"\n')
    command.chmod(0o755)
    environ = os.environ | {
        "PYTHONPATH": str(ROOT / "clients" / "python"),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
    }
    (block,) = code_blocks(section("docs/clients.md", "Command line"), "bash")
    *_, listed = run(BASH, block, server, tmp_path, environ).splitlines()
    assert json.loads(listed)[0]["status"] == "completed"
    for name in ("beat.mp3", "follow.flac", "notes.flac", "stream.wav", "change.ogg"):
        assert seconds_of(tmp_path / name) == pytest.approx(2, abs=0.1)
    assert seconds_of(tmp_path / "longer.mp3") == pytest.approx(4, abs=0.2)
    assert (tmp_path / "live.wav").read_bytes()[:4] == b"RIFF"
    (first,) = code_blocks(page("clients/python/README.md"), "bash")
    assert run(BASH, first, server, tmp_path, environ) == "beat.mp3\n"
