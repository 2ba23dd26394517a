"""What every group of settings has in common. Knows no group."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def split_commas(value: Any) -> Any:
    """Return the parts of a text; what is no text is left as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]


class Section(BaseModel):
    """A group of settings, frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
