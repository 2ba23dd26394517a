"""A real server with a fake engine that needs a key, for the unmodified clients of other services."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audiocraft_api.access.caller import CallerLimits
from audiocraft_api.config import load_config
from audiocraft_api.state.create import create_state
from support.documents import code_blocks, section
from support.keys import ENVIRONMENT_KEY, store_key
from support.receiver import SECRET
from support.served import Server, paused, serve, wait_until

SHOWN_SERVER = "http://localhost:5000"


@pytest.fixture(scope="package")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="package")
def server(directory: Path) -> Iterator[Server]:
    webhooks = {"webhook_secret": SECRET, "webhook_allow_private": True}
    with serve(directory, "support.streamed:app", keys=ENVIRONMENT_KEY, **webhooks) as running:
        yield running


@pytest.fixture
def hold(directory: Path) -> Iterator[Path]:
    """A file that pauses generations with the prompt `hold after N` as long as it exists."""
    file = directory / "hold"
    with paused(file):
        yield file


@pytest.fixture
def spent_key(server: Server, directory: Path) -> str:
    """A key that may generate once per minute, and has."""
    state = create_state(load_config({}, state_db=directory / "state.sqlite3"))
    key = store_key(state, limits=CallerLimits(requests_per_minute=1))
    state.close()
    # The server reads the store twice a second.
    wait_until(lambda: server.get("/tasks", headers={"X-API-Key": key}).status_code == 200)
    made = server.post("/generate", json={"prompt": "cello", "duration": 1}, headers={"X-API-Key": key})
    assert made.status_code == 200
    return key


@pytest.fixture
def run_example(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that runs the Python example under a heading of docs/compatibility.md in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "AUDIOCRAFT_KEY", ENVIRONMENT_KEY)

    def run(heading: str) -> None:
        (block,) = code_blocks(section("docs/compatibility.md", heading), "python")
        assert SHOWN_SERVER in block
        program = compile(block.replace(SHOWN_SERVER, server.url), heading, "exec")
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # some clients cannot be closed
            exec(program, {})
            gc.collect()

    return run
