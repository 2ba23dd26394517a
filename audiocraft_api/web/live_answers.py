"""The schemas of what a live session sends to its client. The AsyncAPI document is generated from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LiveAnswer(BaseModel):
    """What all messages of the server have in common: closed objects."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartedAnswer(LiveAnswer):
    """The music begins. Audio follows as binary messages."""

    type: Literal["started"]
    model: str
    revision: str
    precision: str
    seed: int
    performance: str = Field(
        description="ID for `GET /performances/<id>` and for requests, once the session has ended, however it did."
    )
    format: str
    media_type: str
    sample_rate: int = Field(description="Hz.")
    channels: int
    lead: float = Field(description="Seconds that are generated ahead of playback, at most.")
    frame_rate: int = Field(description="Frames per second, for every `frame` below.")
    request_id: str


class AppliedAnswer(LiveAnswer):
    """A message of the client holds from a frame on. For `play` and `pause`, the frame is that of the playback."""

    type: Literal["applied"]
    to: str = Field(description="Type of the client's message.")
    frame: int
    id: str | None = None


class RejectedAnswer(LiveAnswer):
    """A message of the client has no effect; the music plays on."""

    type: Literal["rejected"]
    error: str
    code: str
    to: str | None = None
    id: str | None = None
    errors: dict[str, list[str]] | None = None
    category: str | None = None
    suggestion: str | None = None


class FilteredPromptAnswer(LiveAnswer):
    """The prompt policy refuses a prompt. The message with it has no effect; the music plays on."""

    type: Literal["filtered_prompt"]
    text: str
    to: str
    error: str
    code: str
    category: str
    suggestion: str | None = None
    id: str | None = None


class UnderrunAnswer(LiveAnswer):
    """All audio was played, because the music is made too slowly. Pause until `resumed`."""

    type: Literal["underrun"]
    frame: int
    factor: float = Field(description="Real-time factor since playback began or went on: below 1 is too slow.")


class ResumedAnswer(LiveAnswer):
    """There is enough audio again."""

    type: Literal["resumed"]
    frame: int


class EndingAnswer(LiveAnswer):
    """The session ends; the rest of its audio follows."""

    type: Literal["ending"]
    reason: str = Field(description="`stopped`, `limit`, `paused`, `idle`, `quota` or `draining`.")


class EndedAnswer(LiveAnswer):
    """The last message, or the last but one before an error."""

    type: Literal["ended"]
    reason: str = Field(description="As in `ending`, or the code of an error.")
    frames: int
    duration: float = Field(description="Seconds.")
    performance: str | None = Field(description="ID for `GET /performances/<id>` and for requests; null without music.")
    seed: int
    request_id: str


class ErrorAnswer(LiveAnswer):
    """The session is over, or has not begun."""

    type: Literal["error"]
    error: str
    code: str
    request_id: str
    errors: dict[str, list[str]] | None = None
    category: str | None = None
    suggestion: str | None = None
    retry_after: int | None = None


ANSWERS: tuple[type[LiveAnswer], ...] = (
    StartedAnswer,
    AppliedAnswer,
    RejectedAnswer,
    FilteredPromptAnswer,
    UnderrunAnswer,
    ResumedAnswer,
    EndingAnswer,
    EndedAnswer,
    ErrorAnswer,
)
