"""The bases of all schemas. They validate, and the OpenAPI document is generated from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class RequestSchema(BaseModel):
    """The base of what requests contain. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    EXAMPLES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by title, for OpenAPI

    @classmethod
    def conflicts(cls, given: Mapping[str, Any]) -> dict[str, str]:  # noqa: ARG003
        """Return the fields that are missing or do not go together, with what is wrong with each."""
        return {}


class ResponseSchema(BaseModel):
    model_config = ConfigDict(frozen=True)
