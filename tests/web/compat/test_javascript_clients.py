"""The unmodified JavaScript clients of other services make music with this server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.keys import ENVIRONMENT_KEY
from support.served import Server

PACKAGE = Path(__file__).parent / "javascript"

pytestmark = pytest.mark.fault  # their packages have 180 MB


@pytest.mark.parametrize("client", ["elevenlabs", "huggingface", "openai", "replicate"])
def test_the_tests_of_a_client_pass(client: str, server: Server, directory: Path, spent_key: str) -> None:
    assert (PACKAGE / "node_modules").is_dir(), "run: make test-faults, which installs the clients"
    environ = os.environ | {
        "TEST_URL": server.url,
        "TEST_KEY": ENVIRONMENT_KEY,
        "TEST_SPENT_KEY": spent_key,
        "TEST_HOLD": str(directory / "hold"),
    }
    # ElevenLabs' client leaves a timer of four minutes behind each aborted request.
    command = ["node", "--test", "--test-force-exit", "--test-reporter=spec", f"{client}.test.js"]
    done = subprocess.run(command, cwd=PACKAGE, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
