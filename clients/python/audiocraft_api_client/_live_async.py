"""The asynchronous live session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Optional, Union

import httpx
from typing_extensions import Unpack

from audiocraft_api_client._live_messages import (
    LivePrompts,
    OnMessage,
    address_of,
    answer_of,
    closed_socket,
    error_of,
    prompts_of,
    socket_errors,
    text_of,
)
from audiocraft_api_client.models import (
    EndedAnswer,
    ErrorAnswer,
    FilteredPromptAnswer,
    LiveSteerFields,
    RejectedAnswer,
    StartedAnswer,
)


class AsyncLiveSession:
    """A live session. Iterate over it to receive the audio, and call its methods to change the music.

    The server answers each change with a message that has the frame at which the change takes effect. The loop over the
    session passes every message to `on_message`. Without `on_message`, a refused change raises its error in the loop.
    """

    started: StartedAnswer

    def __init__(self, socket: Any, on_message: Optional[OnMessage]) -> None:
        self._socket = socket
        self._on_message = on_message
        self.ended: Optional[EndedAnswer] = None  # with the ID of the performance

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the audio as it arrives, until the session ends. Raises the error that ended it."""
        while True:
            received = await self._receive()
            if received is None:
                return
            if isinstance(received, bytes):
                yield received

    async def steer(self, *, prompts: Optional[LivePrompts] = None, **fields: Unpack[LiveSteerFields]) -> None:
        """Change prompts and controls. What is left out stays as it is; None takes away `bpm` or `key`."""
        given: dict[str, Any] = {**fields}
        transition = given.pop("transition", None)
        if prompts is not None:
            await self._send("prompts", prompts=prompts_of(prompts), transition=transition)
        elif transition is not None:
            await self._send("transition", seconds=transition)
        if given:
            await self._send("config", **given)

    async def play(self) -> None:
        """Let the music go on."""
        await self._send("play")

    async def pause(self) -> None:
        """Pause the generation once the lead is complete."""
        await self._send("pause")

    async def reset_context(self) -> None:
        """Begin new music, which does not continue what was played."""
        await self._send("reset_context")

    async def seek_back(self, position: float, prompts: Optional[LivePrompts] = None) -> None:
        """Forget the music from a second on, and go on from there. After the answer, the audio begins there."""
        changed = {} if prompts is None else {"prompts": prompts_of(prompts)}
        await self._send("seek_back", position=position, **changed)

    async def report_playback(self, position: float) -> None:
        """Report how many seconds were heard, so that no more than the lead is generated ahead of that."""
        await self._send("playback", position=position)

    async def stop(self) -> None:
        """End the music. The audio that is complete still arrives."""
        await self._send("stop")

    async def _send(self, kind: str, **fields: Any) -> None:
        with closed_socket(ignored=True):  # the loop says why
            await self._socket.send(text_of(kind, fields))

    async def _receive(self) -> Union[bytes, str, None]:
        """Return the next message, after taking note of it; None at the end."""
        received: Union[bytes, str, None] = None
        with closed_socket(ignored=self.ended is not None):
            received = await self._socket.recv()
        if isinstance(received, str):
            self._take_note(received)
        return received

    def _take_note(self, text: str) -> None:
        answer = answer_of(text)
        if answer is None:
            return  # of a newer server
        if isinstance(answer, StartedAnswer):
            self.started = answer
        elif isinstance(answer, EndedAnswer):
            self.ended = answer
        if self._on_message is not None:
            self._on_message(answer)
        if isinstance(answer, ErrorAnswer):
            raise error_of(answer.error, answer.code, answer)
        if isinstance(answer, (RejectedAnswer, FilteredPromptAnswer)) and self._on_message is None:
            raise error_of(answer.error, answer.code, answer)


@asynccontextmanager
async def open_live(
    http: httpx.AsyncClient, prompts: LivePrompts, on_message: Optional[OnMessage], fields: Mapping[str, Any]
) -> AsyncIterator[AsyncLiveSession]:
    """Begin a live session. Leaving the context ends it."""
    url, settings = address_of(http.base_url, http.headers)
    async with AsyncExitStack() as stack:
        with socket_errors(url):
            from websockets.asyncio.client import connect

            socket = await stack.enter_async_context(connect(url, **settings))
        session = AsyncLiveSession(socket, on_message)
        await session._send("start", prompts=prompts_of(prompts), **fields)
        while not hasattr(session, "started"):
            await session._receive()
        yield session
