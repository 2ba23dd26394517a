"""What the synchronous and the asynchronous client share: requests before they are sent, and what comes back."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Union

import anyio
import httpx
from pydantic import TypeAdapter

from audiocraft_api_client.errors import AudioCraftError, ConnectionFailedError, create_error
from audiocraft_api_client.models import (
    GenerateUrlResponse,
    TaskCanceledResponse,
    TaskCompletedResponse,
    TaskFailedResponse,
    TaskVariation,
    TaskWorkingResponse,
    UrlVariation,
)

Task = Union[TaskWorkingResponse, TaskCompletedResponse, TaskFailedResponse, TaskCanceledResponse]
Upload = Union[str, "os.PathLike[str]", bytes, BinaryIO]
OnProgress = Callable[[Task], None]
# A string is a path on the server, as stems have it.
HasAudio = Union[GenerateUrlResponse, TaskCompletedResponse, UrlVariation, TaskVariation, str]

TASK: TypeAdapter[Task] = TypeAdapter(Task)
RETRIED = frozenset({429, 502, 503, 504})
FIRST_DELAY_SECONDS = 0.5
CONNECT_SECONDS = 10.0

sleep = time.sleep
asleep = anyio.sleep


@dataclass(frozen=True)
class Request:
    """A request to the server, independent of how it is sent."""

    method: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of `httpx.Client.build_request`

    @property
    def is_repeatable(self) -> bool:
        """Whether sending the request twice has the effect of sending it once."""
        return self.method != "POST" or "Idempotency-Key" in self.options.get("headers", {})


@dataclass(frozen=True)
class RetryPolicy:
    """Decides which requests are sent again, and when."""

    max_retries: int
    max_retry_after: float

    def delay_before_retry(self, request: Request, error: AudioCraftError, attempt: int) -> Optional[float]:
        """Return the seconds to wait before the next attempt; None if there is none. The first attempt is 0."""
        delay = FIRST_DELAY_SECONDS * 2**attempt if error.retry_after is None else error.retry_after
        retried = isinstance(error, ConnectionFailedError) or error.status in RETRIED
        if not (request.is_repeatable and retried and attempt < self.max_retries and delay <= self.max_retry_after):
            return None
        return delay


def connection_settings(base_url: Optional[str], api_key: Optional[str], timeout: Optional[float]) -> dict[str, Any]:
    """Return the options of an `httpx.Client`; URL and key default to AUDIOCRAFT_URL and AUDIOCRAFT_KEY."""
    key = api_key or os.environ.get("AUDIOCRAFT_KEY")
    return {
        "base_url": base_url or os.environ.get("AUDIOCRAFT_URL") or "http://localhost:5000",
        # Not X-API-Key: a redirect to an object store must not carry the key, and httpx drops only this header.
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(timeout, connect=CONNECT_SECONDS),
        "follow_redirects": True,
    }


def generation(
    path: str,
    prompt: Optional[str],
    fields: Mapping[str, Any],
    *,
    melody: Optional[Upload] = None,
    audio: Optional[Upload] = None,
) -> Request:
    """Return a request that generates audio. A melody, also of notes, or audio to continue makes its body a form."""
    given = {name: value for name, value in {"prompt": prompt, **fields}.items() if value is not None}
    uploads = {name: upload for name, upload in (("audio", audio), ("melody", melody)) if upload is not None}
    if not uploads and "notes" not in given:
        return Request("POST", path, {"json": given})
    form = {name: json.dumps(value) if isinstance(value, bool) else str(value) for name, value in given.items()}
    files = {name: (name, _content(upload)) for name, upload in uploads.items()}
    path = path.replace("/generate", "/generate-with-melody" if audio is None else "/generate-continuation")
    return Request("POST", path, {"data": form, "files": files})


def audio_request(audio: HasAudio) -> Request:
    """Return the request for the audio of a result or a task, or of a path such as `result.stems.drums`."""
    return Request("GET", audio if isinstance(audio, str) else audio.audio_url)


def submission(
    prompt: Optional[str],
    idempotency_key: Optional[str],
    fields: Mapping[str, Any],
    *,
    melody: Optional[Upload] = None,
    audio: Optional[Upload] = None,
) -> Request:
    """Return a request that submits a task. Without a key it gets a random one, so that it can be repeated."""
    request = generation("/generate-async", prompt, fields, melody=melody, audio=audio)
    headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
    return Request(request.method, request.path, {**request.options, "headers": headers})


def _content(upload: Upload) -> Union[bytes, BinaryIO]:
    return Path(upload).read_bytes() if isinstance(upload, (str, os.PathLike)) else upload


def completed(task: Task) -> Optional[TaskCompletedResponse]:
    """Return a task if it is completed, and None if it is unfinished. Raises the error of a failed task."""
    if isinstance(task, TaskFailedResponse):
        raise create_error(task.error, task.code)
    if isinstance(task, TaskCanceledResponse):
        raise create_error("The task was canceled.", "canceled")
    return task if isinstance(task, TaskCompletedResponse) else None


class EventParser:
    """Parses server-sent events line by line; remembers the ID of the last event."""

    def __init__(self) -> None:
        self.last_id: Optional[str] = None

    def task_of(self, line: str) -> Optional[Task]:
        """Return the task of a line, if it has one. The server sends each task on one line."""
        name, _, value = line.partition(": ")
        if name == "id":
            self.last_id = value
        return TASK.validate_python(json.loads(value)) if name == "data" else None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.last_id is None else {"Last-Event-ID": self.last_id}


@contextmanager
def connection_errors(base_url: object) -> Iterator[None]:
    """Turn errors of the connection into ConnectionFailedError."""
    try:
        yield
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        message = f"The connection to {base_url} failed: {reason}"
        raise ConnectionFailedError(message, code="connection_failed") from error


@contextmanager
def whole_file(path: Union[str, os.PathLike[str]]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete."""
    final = Path(path)
    part = final.with_name(f"{final.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)
