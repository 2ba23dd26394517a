"""What every group of settings has in common. Knows no group."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo


def split_commas(value: Any) -> Any:
    """Return the parts of a text; what is no text is left as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]


class Section(BaseModel):
    """A group of settings, frozen. A field whose name differs from its setting's has the setting's name as its alias."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, populate_by_name=True
    )

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """Return the fields of this section by the name of their setting."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}
