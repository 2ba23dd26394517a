"""The settings reference, `docs/settings.md`, generated from the configuration: one table for each section."""

from __future__ import annotations

from pydantic.fields import FieldInfo

from audiocraft_api.config import SECTIONS, variable_name

INTRODUCTION = """\
# Settings

Settings are environment variables that begin with `AUDIOCRAFT_API_`. They are read and checked once, at startup. If
a value is invalid, the server does not start, and its error message names the variable, the value and what was
expected. Unknown variables with this prefix are ignored, with a warning in the log.

Where a setting refers to another one, it leaves out the prefix and uses lower case: `max_waiting` is
`AUDIOCRAFT_API_MAX_WAITING`.

This page is generated: `python -m audiocraft_api.config > docs/settings.md`.
"""


def settings_page() -> str:
    """Return the content of `docs/settings.md`."""
    parts = [INTRODUCTION]
    for section_name, section in SECTIONS.items():
        rows = [_row(name, field) for name, field in section.settings().items()]
        table = "\n".join(["| Variable | Default | Description |", "|---|---|---|", *rows])
        summary = (section.__doc__ or "").partition("\n")[0]
        parts.append(f"## {section_name.capitalize()}\n\n{summary}\n\n{table}\n")
    return "\n".join(parts)


def _row(name: str, field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, tuple):
        default = ",".join(default)
    shown = f"`{default}`" if default is not None and str(default) else ""
    return f"| `{variable_name(name)}` | {shown} | {field.description} |"
