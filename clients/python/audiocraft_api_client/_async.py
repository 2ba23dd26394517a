"""The asynchronous client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Optional, Union
from urllib.parse import quote

import httpx
from typing_extensions import Self, Unpack

from audiocraft_api_client._live_async import AsyncLiveSession, open_live
from audiocraft_api_client._live_messages import LivePrompts, OnMessage
from audiocraft_api_client._requests import (
    TASK,
    EventParser,
    HasAudio,
    OnProgress,
    Request,
    RetryPolicy,
    Task,
    Upload,
    asleep,
    audio_request,
    completed,
    connection_errors,
    connection_settings,
    generation,
    submission,
    whole_file,
)
from audiocraft_api_client.errors import AudioCraftError, error_of_response
from audiocraft_api_client.models import (
    ContinuationFields,
    ContinuationTaskFields,
    GenerateFields,
    GenerateUrlResponse,
    HealthResponse,
    LiveFields,
    ModelResponse,
    ModelsResponse,
    ModelStateResponse,
    PerformanceResponse,
    StreamFields,
    TaskAcceptedResponse,
    TaskCompletedResponse,
    TaskFields,
    TasksResponse,
)


class AsyncAudioCraft:
    """An asynchronous client of one server.

    `base_url` and `api_key` default to the environment variables AUDIOCRAFT_URL and AUDIOCRAFT_KEY. Requests that are
    safe to repeat are repeated up to `max_retries` times, unless the server asks to wait longer than `max_retry_after`
    seconds; a POST without an idempotency key never is. `timeout` limits the seconds between two received bytes.
    """

    def __init__(
        self,
        base_url: Optional[str] = None,
        api_key: Optional[str] = None,
        *,
        timeout: Optional[float] = 600.0,
        max_retries: int = 2,
        max_retry_after: float = 60.0,
    ) -> None:
        self._http = httpx.AsyncClient(**connection_settings(base_url, api_key, timeout))
        self._retries = RetryPolicy(max_retries, max_retry_after)
        self.tasks = AsyncTasks(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def generate(
        self,
        prompt: Optional[str] = None,
        *,
        melody: Optional[Upload] = None,
        notes: Optional[str] = None,
        **fields: Unpack[GenerateFields],
    ) -> GenerateUrlResponse:
        """Generate audio and wait for it. A melody is a path, bytes or a binary file: a recording or a MIDI file.

        `notes`, such as `C4:1 E4:1/2 -:1`, are a melody as text. `segments` replace the prompt. `continue_from`
        continues audio of your own on the server.
        """
        request = generation("/generate", prompt, {**fields, "notes": notes}, melody=melody)
        return GenerateUrlResponse.model_validate(await self._json(request))

    async def generate_continuation(
        self, prompt: str, *, audio: Upload, melody: Optional[Upload] = None, **fields: Unpack[ContinuationFields]
    ) -> GenerateUrlResponse:
        """Upload audio, continue it and wait for the result. Uploads are paths, bytes or binary files."""
        request = generation("/generate", prompt, fields, melody=melody, audio=audio)
        return GenerateUrlResponse.model_validate(await self._json(request))

    @asynccontextmanager
    async def stream(
        self, prompt: Optional[str] = None, **fields: Unpack[StreamFields]
    ) -> AsyncIterator[AsyncAudioStream]:
        """Generate audio and receive it while it is generated. Leaving the context stops the generation."""
        async with self._open(generation("/generate-stream", prompt, fields)) as response:
            yield AsyncAudioStream(response)

    @asynccontextmanager
    async def live(
        self, prompts: LivePrompts, *, on_message: Optional[OnMessage] = None, **fields: Unpack[LiveFields]
    ) -> AsyncIterator[AsyncLiveSession]:
        """Generate audio that is changed while it is generated. Leaving the context ends the session."""
        async with open_live(self._http, prompts, on_message, fields) as session:
            yield session

    async def performance(self, performance_id: str) -> PerformanceResponse:
        """Return what was played in a live session, for the field `performance` of a request."""
        path = f"/performances/{quote(performance_id, safe='')}"
        return PerformanceResponse.model_validate(await self._json(Request("GET", path)))

    async def download(self, audio: HasAudio) -> bytes:
        """Download the audio of a result or a task, or a stem, such as `result.stems.drums`."""
        async with self._open(audio_request(audio)) as response:
            with connection_errors(self._http.base_url):
                return await response.aread()

    async def save(self, audio: HasAudio, path: Union[str, os.PathLike[str]]) -> None:
        """Download the audio of a result or a task, or a stem, to a file."""
        async with self._open(audio_request(audio)) as response:
            await AsyncAudioStream(response).save(path)

    def url_of(self, audio: HasAudio) -> str:
        """Return the absolute URL of the audio of a result or a task, or of a stem."""
        return str(self._http.build_request("GET", audio_request(audio).path).url)

    async def models(self) -> list[ModelResponse]:
        """List the models."""
        return ModelsResponse.model_validate(await self._json(Request("GET", "/models"))).models

    async def load_model(self, name: str) -> ModelStateResponse:
        """Begin to load a model; `models` has the progress. Needs a key with the scope `admin`."""
        return ModelStateResponse.model_validate(
            await self._json(Request("POST", f"/models/{quote(name, safe='')}/load"))
        )

    async def unload_model(self, name: str, *, when_busy: Literal["wait", "refuse"] = "wait") -> ModelStateResponse:
        """Unload a model: once no request uses it, or only if none does. Needs a key with the scope `admin`."""
        request = Request("POST", f"/models/{quote(name, safe='')}/unload", {"params": {"when_busy": when_busy}})
        return ModelStateResponse.model_validate(await self._json(request))

    async def health(self) -> HealthResponse:
        return HealthResponse.model_validate(await self._json(Request("GET", "/health")))

    async def _json(self, request: Request) -> Any:
        async with self._open(request) as response:
            with connection_errors(self._http.base_url):
                await response.aread()
            return response.json()

    @asynccontextmanager
    async def _open(self, request: Request) -> AsyncIterator[httpx.Response]:
        """Send a request and yield the successful response, whose body is not yet read."""
        attempt = 0
        while True:
            try:
                response = await self._send(request)
                break
            except AudioCraftError as error:
                delay = self._retries.delay_before_retry(request, error, attempt)
                if delay is None:
                    raise
            await asleep(delay)
            attempt += 1
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(self, request: Request) -> httpx.Response:
        with connection_errors(self._http.base_url):
            built = self._http.build_request(request.method, request.path, **request.options)
            response = await self._http.send(built, stream=True)
            if response.is_success:
                return response
            try:
                body = await response.aread()
            finally:
                await response.aclose()
        raise error_of_response(response.status_code, response.headers, body)


class AsyncTasks:
    """Tasks: generations that the server runs while nobody waits."""

    def __init__(self, client: AsyncAudioCraft) -> None:
        self._client = client

    async def submit(
        self,
        prompt: Optional[str] = None,
        *,
        melody: Optional[Upload] = None,
        notes: Optional[str] = None,
        idempotency_key: Optional[str] = None,
        **fields: Unpack[TaskFields],
    ) -> TaskAcceptedResponse:
        """Submit a task. A repeated submission with the same `idempotency_key` returns the same task."""
        request = submission(prompt, idempotency_key, {**fields, "notes": notes}, melody=melody)
        return TaskAcceptedResponse.model_validate(await self._client._json(request))

    async def submit_continuation(
        self,
        prompt: str,
        *,
        audio: Upload,
        melody: Optional[Upload] = None,
        idempotency_key: Optional[str] = None,
        **fields: Unpack[ContinuationTaskFields],
    ) -> TaskAcceptedResponse:
        """Upload audio and submit a task that continues it."""
        request = submission(prompt, idempotency_key, fields, melody=melody, audio=audio)
        return TaskAcceptedResponse.model_validate(await self._client._json(request))

    async def run(
        self,
        prompt: Optional[str] = None,
        *,
        melody: Optional[Upload] = None,
        notes: Optional[str] = None,
        idempotency_key: Optional[str] = None,
        on_progress: Optional[OnProgress] = None,
        poll_seconds: float = 1.0,
        **fields: Unpack[TaskFields],
    ) -> TaskCompletedResponse:
        """Submit a task and wait for it. An interruption cancels the task."""
        accepted = await self.submit(prompt, melody=melody, notes=notes, idempotency_key=idempotency_key, **fields)
        return await self._finish(accepted, on_progress, poll_seconds)

    async def run_continuation(
        self,
        prompt: str,
        *,
        audio: Upload,
        melody: Optional[Upload] = None,
        idempotency_key: Optional[str] = None,
        on_progress: Optional[OnProgress] = None,
        poll_seconds: float = 1.0,
        **fields: Unpack[ContinuationTaskFields],
    ) -> TaskCompletedResponse:
        """Upload audio, submit a task that continues it, and wait for it. An interruption cancels the task."""
        accepted = await self.submit_continuation(
            prompt, audio=audio, melody=melody, idempotency_key=idempotency_key, **fields
        )
        return await self._finish(accepted, on_progress, poll_seconds)

    async def get(self, task_id: str) -> Task:
        return TASK.validate_python(await self._client._json(Request("GET", _path(task_id))))

    async def wait(
        self, task_id: str, *, on_progress: Optional[OnProgress] = None, poll_seconds: float = 1.0
    ) -> TaskCompletedResponse:
        """Poll a task until it is completed. Raises the error of a failed task, or CanceledError."""
        while True:
            task = await self.get(task_id)
            if on_progress is not None:
                on_progress(task)
            done = completed(task)
            if done is not None:
                return done
            await asleep(poll_seconds)

    async def _finish(
        self, accepted: TaskAcceptedResponse, on_progress: Optional[OnProgress], poll_seconds: float
    ) -> TaskCompletedResponse:
        """Wait for a task, and cancel it if the waiting ends with anything but an error of the server."""
        try:
            return await self.wait(accepted.task_id, on_progress=on_progress, poll_seconds=poll_seconds)
        except AudioCraftError:
            raise
        except BaseException:
            with suppress(AudioCraftError):
                await self.cancel(accepted.task_id)
            raise

    async def cancel(self, task_id: str) -> Task:
        """Cancel a task: a queued one at once, a running one after its current step. A finished one does not change."""
        return TASK.validate_python(await self._client._json(Request("DELETE", _path(task_id))))

    async def list(self, *, limit: int = 50, cursor: Optional[str] = None) -> TasksResponse:
        """Return a page of tasks, newest first. `cursor` is the `next_cursor` of the previous page."""
        query = {"limit": limit, **({} if cursor is None else {"cursor": cursor})}
        return TasksResponse.model_validate(await self._client._json(Request("GET", "/tasks", {"params": query})))

    async def events(self, task_id: str) -> AsyncIterator[Task]:
        """Yield the task after each change, and last its final state. Reconnects when the connection ends."""
        parser = EventParser()
        while True:
            request = Request("GET", f"{_path(task_id)}/events", {"headers": parser.headers})
            async with self._client._open(request) as response:
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                with suppress(httpx.TransportError):
                    async for line in response.aiter_lines():
                        task = parser.task_of(line)
                        if task is None:
                            continue
                        yield task
                        if task.status != "processing":
                            return
            await asleep(1.0)


class AsyncAudioStream:
    """Audio that arrives while it is generated: iterate over it, read it whole, or save it."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        headers = response.headers
        self.seed = int(headers.get("X-Audio-Seed", 0))
        self.model: str = headers.get("X-Audio-Model", "")
        self.revision: str = headers.get("X-Audio-Revision", "")
        self.sample_rate = int(headers.get("X-Audio-Sample-Rate", 0))  # in Hz
        self.duration = float(headers.get("X-Audio-Duration", 0))  # in seconds
        self.media_type: str = headers.get("Content-Type", "")
        self.request_id: str = headers.get("X-Request-ID", "")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive. Raises ConnectionFailedError when the generation fails."""
        with connection_errors(self._response.request.url.netloc.decode()):
            async for chunk in self._response.aiter_bytes():
                yield chunk

    async def read(self) -> bytes:
        """Read the rest of the audio."""
        return b"".join([chunk async for chunk in self])

    async def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write the rest of the audio to a file, which appears only when it is complete."""
        with whole_file(path) as file:
            async for chunk in self:
                file.write(chunk)


def _path(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"
