"""The socket of a live session: reads messages at a bounded rate, and sends what the contract makes of the answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from simple_websocket import Server

from audiocraft_api.core.errors import InvalidRequest, RateLimited
from audiocraft_api.live.session import Message
from audiocraft_api.web.live_contract import LiveContract
from audiocraft_api.web.live_steering import client_message, unreadable
from audiocraft_api.web.schemas.live import LiveMessage
from audiocraft_api.web.websocket_messages import receive, send, send_audio

BURST_SECONDS = 5.0  # of messages


class LiveSocket:
    """One client. Every method raises ClientDisconnected."""

    def __init__(
        self, ws: Server, contract: LiveContract, messages_per_second: float, on_ready: Callable[[], None]
    ) -> None:
        """`on_ready` is called once, when the client has said what it wants."""
        self._ws = ws
        self._contract = contract
        self._on_ready: Callable[[], None] | None = on_ready
        self._rate = messages_per_second
        self._messages_left = messages_per_second * BURST_SECONDS
        self.has_received = False
        self.last_message = time.monotonic()

    def receive(self, timeout_seconds: float) -> str | bytes | None:
        """Return what the client sent next; None without anything. Raises RateLimited."""
        text = receive(self._ws, timeout_seconds)
        if text is not None:
            self._count_message()
        return text

    def read(self, text: str | bytes) -> LiveMessage | None:
        """Return the message for the session, if there is one; answer what cannot be read. Raises as `on_ready`.

        Before the client is ready, raises InvalidRequest for what cannot be read.
        """
        try:
            found = list(self._contract.read(text))
        except InvalidRequest as error:
            if not self._contract.is_ready:
                raise
            self.send(unreadable(text, error))
            return None
        if self._on_ready is not None and self._contract.is_ready:
            self._on_ready()
            self._on_ready = None
        for answer in found:
            if not isinstance(answer, LiveMessage):
                send(self._ws, answer)
        return next((message for message in found if isinstance(message, LiveMessage)), None)

    def send(self, message: Message) -> None:
        for answer in self._contract.write(client_message(message)):
            send(self._ws, answer)

    def send_audio(self, piece: bytes) -> None:
        for answer in self._contract.write_audio(piece):
            if isinstance(answer, bytes):
                send_audio(self._ws, answer)
            else:
                send(self._ws, answer)

    def _count_message(self) -> None:
        now = time.monotonic()
        self._messages_left += (now - self.last_message) * self._rate
        self._messages_left = min(self._messages_left, self._rate * BURST_SECONDS) - 1
        self.has_received, self.last_message = True, now
        if self._messages_left < 0:
            raise RateLimited(f"A live session accepts {self._rate:g} messages per second. Send fewer.", 1.0)
