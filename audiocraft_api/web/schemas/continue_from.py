"""The schema of references to audio of the caller, and the descriptions of the part to continue."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from audiocraft_api.generation.continuation import Part
from audiocraft_api.storage.base import LINK
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.field_types import not_null

PART_START = (
    "Where the part to continue starts, in seconds. By default, the part is as long as the model's window permits."
)


PART_END = "Where the part to continue ends and the new audio begins, in seconds; by default, where the audio ends."


INCLUDE_INPUT = "Whether the result begins with the part that is continued, or with the new audio."


class ContinueFromFields(RequestSchema):
    """Audio of the caller to continue, named by its task or its link."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["task_id"], "properties": {"audio_url": False}},
                {"required": ["audio_url"], "properties": {"task_id": False}},
            ]
        }
    )

    task_id: str | None = Field(None, max_length=64, description="ID of a completed task.", json_schema_extra=not_null)
    audio_url: Annotated[str, StringConstraints(pattern=rf"^/audio/{LINK.pattern}$")] | None = Field(
        None, description="`audio_url` of an earlier response.", json_schema_extra=not_null
    )
    start: float | None = Field(None, ge=0, description=PART_START)
    end: float | None = Field(None, gt=0, description=PART_END)
    include_input: bool = Field(True, description=INCLUDE_INPUT)

    @model_validator(mode="before")
    @classmethod
    def _names_one(cls, given: Any) -> Any:
        if isinstance(given, dict) and [name for name in ("task_id", "audio_url") if name in given] not in (
            ["task_id"],
            ["audio_url"],
        ):
            raise ValueError("must have either task_id or audio_url")
        return given

    @field_validator("task_id", "audio_url")
    @classmethod
    def _is_text(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("must be a string")
        return value

    @property
    def part(self) -> Part:
        return Part(self.start, self.end)
