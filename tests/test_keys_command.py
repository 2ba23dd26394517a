"""`python -m audiocraft_api keys`: a key is shown once, works at a running server, and is refused once revoked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.config import variable_name
from audiocraft_api.service.access.api_key import KEY, hash_of
from support.keys import with_key
from support.redis_server import RedisServer
from support.served import ROOT, serve, wait_until


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings of a state store for servers and commands."""
    if request.param == "sqlite":
        yield {"state_db": tmp_path / "state.sqlite3"}
        return
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    yield {"state_backend": "redis", "redis_url": redis.url}
    redis.kill()


def keys(settings: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {variable_name(name): str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "audiocraft_api", "keys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_made_used_listed_and_revoked_while_the_server_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    with serve(tmp_path, "support.served:app", **settings) as server:
        assert server.get("/models").status_code == 200
        made = keys(settings, "create", "--name", "My studio", "--expires-days", "1.5", "--requests-per-minute", "60")
        key = made.stdout.strip()
        assert made.returncode == 0
        assert KEY.fullmatch(key)
        assert "not shown again" in made.stderr
        wait_until(lambda: server.get("/models").status_code == 401, 1.0)
        assert server.get("/models", headers=with_key(key)).status_code == 200

        listed = keys(settings, "list")
        (line,) = listed.stdout.splitlines()[1:]
        key_id = key.split("_")[1]
        assert line.split()[:5] == [key_id, "My", "studio", "usable", "generate,read"]
        assert line.endswith("requests_per_minute=60")
        for secret in (key.rpartition(key_id + "_")[2], hash_of(key)):
            assert secret not in listed.stdout + keys(settings, "list", "--json").stdout

        revoked = keys(settings, "revoke", key_id)
        ended = time.monotonic()
        assert (revoked.returncode, revoked.stdout) == (0, f"{key_id} is revoked.\n")
        wait_until(lambda: server.get("/models", headers=with_key(key)).status_code == 401, 1.0)
        assert time.monotonic() - ended < 1.0
        assert server.get("/models").status_code == 401
        assert key not in server.log


def test_programs_read_json(tmp_path: Path) -> None:
    settings = {"state_db": tmp_path / "state.sqlite3"}
    made = json.loads(keys(settings, "create", "--name", "ci", "--scopes", "admin, read", "--json").stdout)
    assert KEY.fullmatch(made["key"])
    assert made["scopes"] == ["admin", "read"]
    (listed,) = json.loads(keys(settings, "list", "--json").stdout)
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert listed["state"] == "usable"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", listed["created"])
    assert (listed["expires"], listed["revoked"], listed["limits"]) == (None, None, {})
    revoked = json.loads(keys(settings, "revoke", made["id"], "--json").stdout)
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
def test_wrong_arguments_are_refused_with_a_sentence_and_make_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    from audiocraft_api.__main__ import main

    monkeypatch.setenv(variable_name("state_db"), str(tmp_path / "state.sqlite3"))
    with pytest.raises(SystemExit) as end:
        main(["keys", *arguments])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_one_sentence_and_an_exit_status(tmp_path: Path) -> None:
    settings = {"state_db": tmp_path / "state.sqlite3", "max_keys": 1}
    (tmp_path / "file").touch()
    assert keys(settings, "create", "--name", "first").returncode == 0
    for given, arguments, sentence in (
        (settings, ("create", "--name", "second"), "revoke some"),
        (settings, ("revoke", "nobody00"), "There is no key nobody00."),
        (settings | {"state_db": tmp_path / "file" / "state"}, ("list",), "The state store cannot be used now"),
        (settings | {"threads": 0}, ("list",), "AUDIOCRAFT_API_THREADS=0 is not valid"),
    ):
        refused = keys(given, *arguments)
        assert refused.returncode == 1
        assert sentence in refused.stderr
        assert "Traceback" not in refused.stderr
