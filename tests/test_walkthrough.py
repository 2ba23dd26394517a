"""The README's walks through tasks and streams do what they say: run as they stand, against a real server and model."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from support.served import ROOT, Server, serve

README = (ROOT / "README.md").read_text()
SHOWN_SERVER = "http://localhost:5000"


@pytest.fixture(scope="module")
def server(demo_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), checkpoints_dir=demo_checkpoints, offline=True) as running:
        yield running


def block(section: str, language: str) -> str:
    """Return the first code block in a language after a heading."""
    (_, _, text) = README.partition(f"# {section}\n")
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    assert SHOWN_SERVER in found[1]
    return found[1]


def run(program: list[str], text: str, server: Server, directory: Path) -> str:
    text = text.replace(SHOWN_SERVER, server.url)
    done = subprocess.run([*program, text], cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_the_walk_with_curl_submits_polls_follows_saves_and_cancels(server: Server, tmp_path: Path) -> None:
    shell = run(["bash", "-euc"], block("Tasks", "bash"), server, tmp_path)
    polled, *lines = [line for line in shell.splitlines() if line.strip()]
    assert json.loads(polled)["status"] in ("processing", "completed")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert events[-1]["status"] == "completed"
    canceled, listed = (json.loads(line) for line in lines[-2:])
    assert canceled == events[-1]
    assert listed["tasks"][0]["task_id"] == canceled["task_id"]
    (saved,) = tmp_path.glob("*.mp3")
    assert soundfile.info(saved).duration == pytest.approx(3, abs=0.1)


def test_the_walk_with_javascript_polls_one_task_and_cancels_another(server: Server, tmp_path: Path) -> None:
    lines = run(["node", "--input-type=module", "--eval"], block("Tasks", "js"), server, tmp_path).splitlines()
    completed = next(index for index, line in enumerate(lines) if line.startswith("completed /audio/"))
    assert server.get(lines[completed].split()[1]).status_code == 200
    assert lines[-1] == "canceled"
    assert set(lines[completed + 1 : -1]) <= {"queued", "processing"}


def test_streams_are_heard_with_curl_and_javascript(server: Server, tmp_path: Path) -> None:
    run(["bash", "-euc"], block("Hear it while it is made", "bash"), server, tmp_path)
    assert soundfile.info(tmp_path / "stream.mp3").duration == pytest.approx(3, abs=0.1)
    heard = run(
        ["node", "--input-type=module", "--eval"], block("Hear it while it is made", "js"), server, tmp_path
    ).split()
    assert int(heard[0]) == 44 + 2 * 32_000 * 2
