"""What both live sessions share: where to connect, the messages of the client, and those of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Callable, Optional, Union

import httpx
from pydantic import Field, TypeAdapter

from audiocraft_api_client.errors import AudioCraftError, ConnectionFailedError, create_error, error_of_response
from audiocraft_api_client.models import (
    AppliedAnswer,
    EndedAnswer,
    EndingAnswer,
    ErrorAnswer,
    FilteredPromptAnswer,
    LivePromptFields,
    RejectedAnswer,
    ResumedAnswer,
    StartedAnswer,
    UnderrunAnswer,
)

Answer = Union[
    StartedAnswer,
    AppliedAnswer,
    RejectedAnswer,
    FilteredPromptAnswer,
    UnderrunAnswer,
    ResumedAnswer,
    EndingAnswer,
    EndedAnswer,
    ErrorAnswer,
]
OnMessage = Callable[[Answer], None]
LivePrompts = Union[str, Sequence[Union[str, LivePromptFields]]]  # one text, or up to four texts with weights

ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="type")])
_TYPES = {"started", "applied", "rejected", "filtered_prompt", "underrun", "resumed", "ending", "ended", "error"}
_DETAILS = ("request_id", "retry_after", "errors", "category", "suggestion")


def address_of(base_url: httpx.URL, headers: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the URL of the WebSocket and the options of `websockets`' `connect`."""
    url = str(base_url).rstrip("/").replace("http", "ws", 1) + "/ws/live"
    sent = {name: headers[name] for name in ("Authorization",) if name in headers}
    return url, {"additional_headers": sent, "max_size": None}


@contextmanager
def socket_errors(url: str) -> Iterator[None]:
    """Turn errors of the connection into errors of this package. Raises ImportError without `websockets`."""
    try:
        from websockets.exceptions import InvalidHandshake, InvalidStatus
    except ImportError as error:
        raise ImportError('Live sessions need websockets: pip install "audiocraft-api-client[live]"') from error
    try:
        yield
    except InvalidStatus as error:
        response = error.response
        raise error_of_response(response.status_code, response.headers, bytes(response.body or b"")) from error
    except (OSError, InvalidHandshake) as error:
        message = f"The connection to {url} failed: {error}"
        raise ConnectionFailedError(message, code="connection_failed") from error


@contextmanager
def closed_socket(*, ignored: bool) -> Iterator[None]:
    """Ignore that the server closed the connection, or raise ConnectionFailedError."""
    from websockets.exceptions import ConnectionClosed

    try:
        yield
    except ConnectionClosed as error:
        if not ignored:
            message = "The server closed the connection before the end of the session."
            raise ConnectionFailedError(message, code="connection_failed") from error


def prompts_of(prompts: LivePrompts) -> list[LivePromptFields]:
    """Return prompts as the server takes them."""
    given = [prompts] if isinstance(prompts, str) else prompts
    return [{"text": prompt} if isinstance(prompt, str) else prompt for prompt in given]


def text_of(kind: str, fields: Mapping[str, Any]) -> str:
    """Return a message. None leaves a field out, except where it takes a word away."""
    words = ("bpm", "key") if kind == "config" else ()
    given = {name: value for name, value in fields.items() if value is not None or name in words}
    return json.dumps({"type": kind, **given})


def answer_of(text: str) -> Optional[Answer]:
    """Return a message of the server; None if this client does not know its type."""
    fields = json.loads(text)
    return ANSWER.validate_python(fields) if fields.get("type") in _TYPES else None


def error_of(message: str, code: str, answer: object = None) -> AudioCraftError:
    """Return the error that a message of the server carries."""
    return create_error(message, code, **{name: getattr(answer, name, None) for name in _DETAILS})
