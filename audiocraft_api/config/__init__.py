"""The one settings table: every setting is a field of `Config`, read from `AUDIOCRAFT_API_<NAME>`.

A wrong value stops the start with a sentence that names variable, value and what was expected; an unknown variable
with the prefix warns. Each module beside this one owns a group of settings; the README's table is tested against all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, ValidationError

from audiocraft_api.config.access import AccessSettings
from audiocraft_api.config.audio import AudioSettings
from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.config.limits import LimitSettings
from audiocraft_api.config.models import ModelSettings
from audiocraft_api.config.policy import PolicySettings
from audiocraft_api.config.results import ResultSettings
from audiocraft_api.config.section import Section
from audiocraft_api.config.server import ServerSettings
from audiocraft_api.config.state import StateSettings
from audiocraft_api.config.storage import StorageSettings
from audiocraft_api.config.tasks import TaskSettings
from audiocraft_api.config.telemetry import TelemetrySettings
from audiocraft_api.config.webhooks import WebhookSettings

PREFIX = "AUDIOCRAFT_API_"

logger = logging.getLogger(__name__)


class ConfigError(Exception):
    """A setting has a wrong value; the message names the variable, the value and what was expected."""


class Config(
    ServerSettings,
    AccessSettings,
    LimitSettings,
    PolicySettings,
    ModelSettings,
    EngineSettings,
    ResultSettings,
    TaskSettings,
    WebhookSettings,
    AudioSettings,
    StorageSettings,
    StateSettings,
    TelemetrySettings,
):
    """Settings of the server, frozen. Parameters of one request are `GenerationParams`."""

    @property
    def shares_state(self) -> bool:
        """Say whether tasks, keys, quotas and known results are in a Redis, and not in files of this machine."""
        return self.state_backend == "redis" or (self.state_backend == "auto" and self.task_backend == "celery")


SECTIONS: tuple[type[Section], ...] = Config.__bases__  # in the order of the README's table


def variable_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + field.upper()


def load_config(environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
    """Read the settings from `environ` (default: the process's), `overrides` winning. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {variable_name(field): field for field in Config.model_fields}
    for variable, value in environ.items():
        if variable in known:
            values[known[variable]] = value
        elif variable.startswith(PREFIX):
            logger.warning("Unknown setting %s is ignored.", variable)
    values.update(overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(detail) for detail in error.errors())) from None


def settings_table() -> str:
    """Return the README's table of the settings."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in [item for section in SECTIONS for item in section.model_fields.items()]:
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = (
            ""
            if default is None or not str(default)
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{variable_name(name)}` | {shown} | {field.description} |")
    return "\n".join(rows)


def _sentence(detail: Any) -> str:
    expected = str(detail["msg"]).replace("Input should be", "expected")
    name = str(detail["loc"][0])
    is_secret = isinstance(Config.model_fields[name].default, SecretStr) if name in Config.model_fields else False
    value = "(hidden)" if is_secret else detail["input"]
    return f"{variable_name(name)}={value!s} is not valid: {expected}"
