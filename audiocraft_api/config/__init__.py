"""All settings of the service, read from environment variables `AUDIOCRAFT_API_<NAME>` into a frozen `Config`.

An invalid value stops the start with a message that names the variable, the value and what was expected. Unknown
variables with the prefix are logged. Each section has a module of its own; docs/settings.md is generated from them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from audiocraft_api.config.access import AccessSettings
from audiocraft_api.config.audio import AudioSettings
from audiocraft_api.config.compat import CompatSettings
from audiocraft_api.config.engine import EngineSettings
from audiocraft_api.config.limits import LimitSettings
from audiocraft_api.config.live import LiveSettings
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
    """A setting has an invalid value; the message names the variable, the value and what was expected."""


class Config(BaseModel):
    """All settings, frozen, in sections: `config.tasks.lease_seconds`.

    The constructor accepts flat names: `Config(task_lease_seconds=5)`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    server: ServerSettings
    access: AccessSettings
    limits: LimitSettings
    policy: PolicySettings
    models: ModelSettings
    engine: EngineSettings
    live: LiveSettings
    results: ResultSettings
    tasks: TaskSettings
    webhooks: WebhookSettings
    audio: AudioSettings
    compat: CompatSettings
    storage: StorageSettings
    state: StateSettings
    telemetry: TelemetrySettings

    @model_validator(mode="before")
    @classmethod
    def _group_by_section(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Group flat settings by section. Unknown names stay at the top level, so that validation rejects them."""
        section_names = {name: section for section, kind in SECTIONS.items() for name in kind.settings()}
        grouped: dict[str, Any] = {section: {} for section in SECTIONS}
        for name, value in settings.items():
            (grouped[section_names[name]] if name in section_names else grouped)[name] = value
        return grouped

    @property
    def shares_state(self) -> bool:
        """Whether tasks, keys, quotas and cached results are stored in Redis, not in files of this machine."""
        return self.state.backend == "redis" or (self.state.backend == "auto" and self.tasks.backend == "celery")


# In the order of the documented table.
SECTIONS = {name: cast("type[Section]", field.annotation) for name, field in Config.model_fields.items()}


def all_settings() -> dict[str, FieldInfo]:
    """Return all settings by name, in the order of the documented table."""
    return {name: field for section in SECTIONS.values() for name, field in section.settings().items()}


def variable_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + field.upper()


def load_config(environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
    """Read settings from `environ` (default: `os.environ`); `overrides` take precedence. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {variable_name(field): field for field in all_settings()}
    for variable, value in environ.items():
        if variable in known:
            values[known[variable]] = value
        elif variable.startswith(PREFIX):
            logger.warning("Ignoring the unknown setting %s.", variable)
    values.update(overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(detail) for detail in error.errors())) from None


def _sentence(detail: ErrorDetails) -> str:
    name = str(detail["loc"][min(1, len(detail["loc"]) - 1)])  # (section, setting), or (unknown setting,)
    setting = all_settings().get(name)
    value = "(hidden)" if setting and isinstance(setting.default, SecretStr) else detail["input"]
    return f"{variable_name(name)}={value!s} is not valid: {_expectation(detail, setting)}"


def _expectation(detail: ErrorDetails, setting: FieldInfo | None) -> str:
    number = "an integer" if setting and setting.annotation is int else "a number"
    context = detail.get("ctx", {})
    match detail["type"]:
        case "greater_than_equal":
            return f"expected {number} of at least {context['ge']:.12g}"
        case "less_than_equal":
            return f"expected {number} of at most {context['le']:.12g}"
        case "greater_than":
            return f"expected {number} greater than {context['gt']:.12g}"
        case "int_parsing" | "int_from_float" | "float_parsing" | "finite_number":
            return f"expected {number}"
        case "bool_parsing":
            return "expected `true` or `false`"
        case "string_pattern_mismatch":
            return f"expected a value that matches {context['pattern']}"
        case "value_error":
            return str(context["error"])
    return str(detail["msg"]).replace("Input should be", "expected")
