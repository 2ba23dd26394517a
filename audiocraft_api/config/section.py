"""The base class of every section of settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo


def split_commas(value: Any) -> Any:
    """Split a string at commas; return other values unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]


class Section(BaseModel):
    """A frozen section of settings. If a field has an alias, the alias is the name of its setting."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, populate_by_name=True
    )

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """Return the fields of this section by setting name."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}
