"""The README's walks through tasks and streams do what they say: run as they stand, against a real server and model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from audiocraft_api.config import variable_name
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


def test_the_walk_with_keys_makes_uses_lists_and_revokes_one(demo_checkpoints: Path, tmp_path: Path) -> None:
    settings = {"checkpoints_dir": demo_checkpoints, "state_db": tmp_path / "state.sqlite3"}
    with serve(tmp_path, offline=True, keys="k" * 40, **settings) as server:
        shell = block("Keys", "bash").replace(SHOWN_SERVER, server.url).replace(".venv/bin/python", sys.executable)
        environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
        done = subprocess.run(
            ["bash", "-euc", shell], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True
        )
        answer, _, listed, revoked = done.stdout.splitlines()
        assert json.loads(answer)["success"] is True
        assert listed.split()[1:3] == ["studio", "usable"]
        assert revoked == f"{listed.split()[0]} is revoked."

        script = f"const key = '{'k' * 40}';\n" + block("Keys", "js")
        lines = run(["node", "--input-type=module", "--eval"], script, server, tmp_path).splitlines()
        assert [line for line in lines if '"status": "completed"' in line]
        assert lines[-1].startswith("blob:")
