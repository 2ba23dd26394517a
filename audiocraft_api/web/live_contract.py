"""How the client and the server of a live session speak: the contract of `/ws/live`, and what others must provide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.live.session import Message
from audiocraft_api.web.live_steering import parse_message
from audiocraft_api.web.schemas.live import LiveMessage, StartMessage


class LiveContract(Protocol):
    """Translates what a client sends to the messages of this API, and those of the server to what the client reads.

    One object serves one connection.
    """

    restarts: bool  # whether the client may begin another session after it stopped one
    output_format: str | None  # of the audio; None: the `format` of the `start` message

    @property
    def is_ready(self) -> bool:
        """Whether the client has said what it wants, so that the connection counts as a session."""

    def read(self, text: str | bytes) -> Iterator[LiveMessage | dict[str, Any]]:
        """Yield the message for the session that a client sent, and answers to send at once. Raises InvalidRequest."""

    def next_start(self) -> StartMessage | None:
        """Return the message that begins a session; None before the client wants one. Raises InvalidRequest."""

    def write(self, message: Message) -> Iterator[dict[str, Any]]:
        """Yield what the client gets for a message of the server."""

    def write_audio(self, piece: bytes) -> Iterator[bytes | dict[str, Any]]:
        """Yield what the client gets for the next piece of audio."""

    def closing_text(self, message: Message, /) -> str:
        """Return the text of the close frame after the last message of the server."""


class PlainContract:
    """The contract of `/ws/live`."""

    restarts = False
    output_format: str | None = None

    def __init__(self) -> None:
        self.is_ready = False
        self._start: StartMessage | None = None

    def read(self, text: str | bytes) -> Iterator[LiveMessage]:
        message = parse_message(text)
        if self.is_ready:
            yield message
        elif isinstance(message, StartMessage):
            self._start, self.is_ready = message, True
        else:
            raise InvalidRequest("The first message must be of the type start.")

    def next_start(self) -> StartMessage | None:
        return self._start

    def write(self, message: Message) -> Iterator[Message]:
        yield message

    def write_audio(self, piece: bytes) -> Iterator[bytes]:
        yield piece

    def closing_text(self, _message: Message, /) -> str:
        return ""
