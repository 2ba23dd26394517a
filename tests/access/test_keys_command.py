"""`python -m audiocraft_api keys`: a key is shown once, works on a running server, and is refused after revocation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.__main__ import main
from audiocraft_api.access.api_key import KEY, hash_of
from audiocraft_api.config import variable_name
from support.keys import with_key
from support.served import ROOT, serve, wait_until


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The state store settings of the server and the command."""
    if request.param == "sqlite":
        return {"state_db": tmp_path / "state.sqlite3"}
    return {"state_backend": "redis", "redis_url": request.getfixturevalue("redis_server").url}


def run_keys(settings: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "audiocraft_api", "keys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timing
def test_a_key_is_created_used_listed_and_revoked_while_the_server_runs(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with serve(tmp_path, "support.served:app", **settings) as server:
        assert server.get("/models").status_code == 200
        created = run_keys(
            settings, "create", "--name", "My studio", "--expires-days", "1.5", "--requests-per-minute", "60"
        )
        key = created.stdout.strip()
        assert created.returncode == 0
        assert KEY.fullmatch(key)
        assert "cannot be shown again" in created.stderr
        wait_until(lambda: server.get("/models").status_code == 401)
        assert server.get("/models", headers=with_key(key)).status_code == 200

        listed = run_keys(settings, "list")
        (line,) = listed.stdout.splitlines()[1:]
        key_id = key.split("_")[1]
        assert line.split()[:5] == [key_id, "My", "studio", "usable", "generate,read"]
        assert line.endswith("requests_per_minute=60")
        for secret in (key.rpartition(key_id + "_")[2], hash_of(key)):
            assert secret not in listed.stdout

        revoked = run_keys(settings, "revoke", key_id)
        revoked_at = time.monotonic()
        assert (revoked.returncode, revoked.stdout) == (0, f"{key_id} is revoked.\n")
        wait_until(lambda: server.get("/models", headers=with_key(key)).status_code == 401, 1.0)
        assert time.monotonic() - revoked_at < 1.0
        assert server.get("/models").status_code == 401
        assert key not in server.log


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int | str | None, str, str]]:
    """A function that runs the command in this process and returns its exit status, stdout and stderr."""

    def run(*arguments: str, **settings: Any) -> tuple[int | str | None, str, str]:
        for name, value in ({"state_db": tmp_path / "state.sqlite3"} | settings).items():
            monkeypatch.setenv(variable_name(name), str(value))
        status: int | str | None = None
        try:
            main(["keys", *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_all_commands_can_print_json(command: Any) -> None:
    created = json.loads(command("create", "--name", "ci", "--scopes", "admin, read", "--json")[1])
    assert KEY.fullmatch(created["key"])
    assert created["scopes"] == ["admin", "read"]
    (listed,) = json.loads(command("list", "--json")[1])
    assert created["key"].rpartition(created["id"] + "_")[2] not in json.dumps(listed)
    assert listed == {name: value for name, value in created.items() if name != "key"}
    assert listed["state"] == "usable"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", listed["created"])
    assert (listed["expires"], listed["revoked"], listed["limits"]) == (None, None, {})
    revoked = json.loads(command("revoke", created["id"], "--json")[1])
    assert revoked["state"] == "revoked"
    assert revoked["revoked"] is not None


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("create",),
        ("create", "--name", ""),
        ("create", "--name", "a\nb"),
        ("create", "--name", "a" * 101),
        ("create", "--name", "a", "--scopes", "write"),
        ("create", "--name", "a", "--scopes", ""),
        ("create", "--name", "a", "--expires-days", "0"),
        ("create", "--name", "a", "--expires-days", "nan"),
        ("create", "--name", "a", "--requests-per-day", "-1"),
        ("create", "--name", "a", "--requests-per-day", "many"),
        ("revoke",),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused_with_a_message_and_create_no_file(
    tmp_path: Path, command: Any, arguments: tuple[str, ...]
) -> None:
    status, _, message = command(*arguments)
    assert status == 2
    assert "error: " in message
    assert not list(tmp_path.iterdir())


def test_a_command_that_fails_exits_with_one_sentence(tmp_path: Path, command: Any) -> None:
    assert command("create", "--name", "first", max_keys=1)[0] is None
    assert "Revoke a key" in command("create", "--name", "second")[0]
    assert command("revoke", "unknown0")[0] == "There is no key with the id unknown0. List the ids with `keys list`."
    (tmp_path / "file").touch()
    unavailable = command("list", state_db=tmp_path / "file" / "state.sqlite3")
    assert unavailable[0] == "The state store is unavailable. Try again later."
    assert "AUDIOCRAFT_API_THREADS=0 is not valid" in command("list", threads=0)[0]
