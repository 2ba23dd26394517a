"""A client of `/ws/live`, and what hostile ones do."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any, get_args

from simple_websocket import Client, ConnectionClosed

from audiocraft_api.web.live_answers import ANSWERS

TIMEOUT_SECONDS = 60.0
FRAME_BYTES = 2 * 640  # 16-bit samples of a frame at 32 kHz
START = {"type": "start", "model_size": "demo", "seed": 3, "prompts": [{"text": "jazz piano"}]}


def described(text: str) -> dict[str, Any]:
    """Return a message of the server, which must be as documented."""
    message: dict[str, Any] = json.loads(text)
    schemas = {get_args(schema.model_fields["type"].annotation)[0]: schema for schema in ANSWERS}
    schemas[message["type"]].model_validate(message, strict=True)
    return message


class LiveClient:
    """A client of `/ws/live` that plays by the server's clock."""

    def __init__(self, port: int, *messages: Any, headers: dict[str, str] | None = None) -> None:
        self.ws = Client.connect(f"ws://127.0.0.1:{port}/ws/live", headers=headers)
        self.messages: list[dict[str, Any]] = []
        self.audio = b""
        for message in messages:
            self.send(message)

    def send(self, message: Any) -> None:
        self.ws.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def receive(self) -> dict[str, Any]:
        """Return the next message; collect the audio before it."""
        while True:
            message = self.ws.receive(timeout=TIMEOUT_SECONDS)
            assert message is not None, "no message was received"
            if isinstance(message, bytes):
                self.audio += message
            else:
                self.messages.append(described(message))
                return self.messages[-1]

    def receive_until(self, kind: str) -> dict[str, Any]:
        """Return the next message of a type."""
        while (message := self.receive())["type"] != kind:
            assert message["type"] not in ("error", "ended"), message
            assert len(self.audio) < 500 * FRAME_BYTES, f"no {kind} in ten seconds of music"
        return message

    def receive_audio(self, num_frames: int) -> None:
        """Receive until there is audio of this many frames."""
        while len(self.audio) < num_frames * FRAME_BYTES:
            message = self.ws.receive(timeout=TIMEOUT_SECONDS)
            assert message is not None, "no message was received"
            if isinstance(message, bytes):
                self.audio += message
            else:
                self.messages.append(described(message))
                assert self.messages[-1]["type"] not in ("error", "ended"), message

    def receive_all(self) -> dict[str, Any]:
        """Receive until the server closes the connection; return the last message."""
        try:
            while True:
                self.receive()
        except ConnectionClosed:
            return self.messages[-1]

    @property
    def close_code(self) -> int:
        return int(self.ws.close_reason)


def vanish(client: LiveClient) -> None:
    client.ws.sock.shutdown(socket.SHUT_RDWR)


def flood(client: LiveClient) -> None:
    """Send several thousand changes as fast as the connection takes them."""
    with suppress(ConnectionClosed, OSError):
        for number in range(5_000):
            client.send({"type": "prompts", "prompts": [{"text": f"prompt {number}"}]})
    assert client.receive_all()["code"] in ("rate_limited", "invalid_request")


def send_garbage(client: LiveClient) -> None:
    """Send a hundred messages that mean nothing, each of which is answered, and too many of them."""
    with suppress(ConnectionClosed, OSError):
        for number in range(1_000):
            client.send([b"\x00\xff", "[" * 1_000, "null", f'{{"type": {number}}}', b"\xd8\x00"][number % 5])
    assert client.receive_all()["code"] in ("rate_limited", "invalid_request")
    assert any(message["type"] == "rejected" for message in client.messages)


def send_too_much(client: LiveClient) -> None:
    with suppress(ConnectionClosed, OSError):
        client.send(" " * 300_000)


def send_many_prompts(client: LiveClient) -> None:
    """Send a thousand prompts at once, which changes nothing, and leave."""
    client.send({"type": "prompts", "prompts": [{"text": str(number)} for number in range(1_000)]})
    assert client.receive_until("rejected")["errors"].keys() == {"prompts"}
    client.ws.close()


HOSTILE = [vanish, flood, send_garbage, send_too_much, send_many_prompts]
