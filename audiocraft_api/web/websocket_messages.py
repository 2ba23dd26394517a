"""The messages of WebSockets: sending, receiving, and errors as messages with close codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from simple_websocket import ConnectionClosed, Server

from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    ClientDisconnected,
    LimitExceeded,
    ShuttingDown,
    Unavailable,
)
from audiocraft_api.web.context import request_id
from audiocraft_api.web.errors import details_of, whole_seconds

# Close codes of RFC 6455 and of the IANA registry.
NORMAL_CLOSURE, GOING_AWAY, POLICY_VIOLATION, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1001, 1008, 1011, 1013


def receive(ws: Server, timeout_seconds: float) -> str | bytes | None:
    with _client_errors():
        message: str | bytes | None = ws.receive(timeout=timeout_seconds)
    return message


def send(ws: Server, message: dict[str, Any]) -> None:
    with _client_errors():
        ws.send(json.dumps(message))


def send_audio(ws: Server, piece: bytes) -> None:
    with _client_errors():
        ws.send(piece)


@contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except (ConnectionClosed, OSError) as error:
        raise ClientDisconnected from error


def error_message(error: AudioCraftError) -> dict[str, Any]:
    message: dict[str, Any] = {
        "type": "error",
        "error": error.message,
        "code": error.code,
        "request_id": request_id(),
    }
    message |= {name: value for name, value in details_of(error).items() if value is not None}
    if isinstance(error, (Unavailable, LimitExceeded)):
        message["retry_after"] = whole_seconds(error.retry_after_seconds)
    return message


def close_code(error: AudioCraftError) -> int:
    if isinstance(error, Canceled):
        return NORMAL_CLOSURE
    if isinstance(error, ShuttingDown):
        return GOING_AWAY
    if isinstance(error, (Unavailable, LimitExceeded)):
        return TRY_AGAIN_LATER
    return POLICY_VIOLATION if error.status < 500 else INTERNAL_ERROR
