"""Settings come from the environment, an invalid value stops the start, and docs/settings.md lists all of them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiocraft_api.config import Config, ConfigError, load_config, variable_name
from audiocraft_api.config.reference import settings_page

ROOT = Path(__file__).parents[2]


def test_every_default_is_a_valid_value() -> None:
    assert load_config({}) == Config()


def test_settings_are_read_from_the_environment() -> None:
    config = load_config(
        {"AUDIOCRAFT_API_THREADS": "8", "AUDIOCRAFT_API_CORS_ORIGINS": "https://a.example, https://b.example"}
    )
    assert config.server.threads == 8
    assert config.server.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AUDIOCRAFT_API_BIND", "nowhere"),
        ("AUDIOCRAFT_API_THREADS", "0"),
        ("AUDIOCRAFT_API_THREADS", "many"),
        ("AUDIOCRAFT_API_DEVICE", "tpu"),
        ("AUDIOCRAFT_API_ENGINE", ""),
        ("AUDIOCRAFT_API_OFFLINE", "perhaps"),
        ("AUDIOCRAFT_API_REQUEST_DEADLINE_SECONDS", "nan"),
        ("AUDIOCRAFT_API_REQUEST_DEADLINE_SECONDS", "-1"),
        ("AUDIOCRAFT_API_MAX_UPLOAD_BYTES", "1e309"),
    ],
)
def test_an_invalid_value_is_refused_with_the_variable_and_the_value_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({variable: value})
    assert f"{variable}={value} is not valid" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("AUDIOCRAFT_API_THREADS", "0", "expected an integer of at least 4"),
        ("AUDIOCRAFT_API_THREADS", "many", "expected an integer"),
        ("AUDIOCRAFT_API_REQUEST_DEADLINE_SECONDS", "0", "expected a number greater than 0"),
        ("AUDIOCRAFT_API_REQUEST_DEADLINE_SECONDS", "nan", "expected a number"),
        ("AUDIOCRAFT_API_OFFLINE", "perhaps", "expected `true` or `false`"),
        ("AUDIOCRAFT_API_DEVICE", "tpu", "expected 'auto', 'cuda', 'mps' or 'cpu'"),
        ("AUDIOCRAFT_API_JWT_ISSUER", "a", "jwt_issuer, jwt_audience and jwt_jwks_url must be set together"),
    ],
)
def test_the_message_says_what_was_expected(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({variable: value})
    assert str(caught.value).endswith(f" is not valid: {expected}")


def test_an_unknown_variable_with_the_prefix_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "audiocraft_api"):
        load_config({"AUDIOCRAFT_API_TREADS": "8", "OTHER": "1"})
    assert "AUDIOCRAFT_API_TREADS" in caplog.text
    assert "OTHER" not in caplog.text


@pytest.mark.parametrize("command", [["gunicorn", "-c", "gunicorn.conf.py", "app:app"], ["python", "app.py"]])
@pytest.mark.parametrize("wrong", ["threads", "models_file", "prompt_list_file"])
def test_an_invalid_value_stops_the_start_with_one_sentence(command: list[str], wrong: str, tmp_path: Path) -> None:
    value = "0" if wrong == "threads" else str(tmp_path / "absent")
    program = Path(sys.executable).parent / command[0]
    run = subprocess.run(
        [program, *command[1:]],
        cwd=ROOT,
        env=os.environ | {variable_name(wrong): value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    (sentence,) = run.stderr.strip().splitlines()
    assert value in sentence


def test_the_settings_reference_is_up_to_date() -> None:
    """After a change, run `python -m audiocraft_api.config > docs/settings.md`."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()
