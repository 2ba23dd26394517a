"""Live sessions of the Python client, against a real server with a fake engine that plays a stereo tone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from audiocraft_api_client import (
    AsyncAudioCraft,
    AudioCraft,
    ConnectionFailedError,
    InvalidRequestError,
    UnauthorizedError,
)
from audiocraft_api_client._live_messages import Answer
from audiocraft_api_client.models import AppliedAnswer

from support.keys import ENVIRONMENT_KEY
from support.served import Server

FRAME_BYTES = 2 * 2 * 640
START: dict[str, Any] = {"model_size": "demo-stereo", "lead": 1}


def test_the_music_changes_while_it_plays_and_its_performance_is_kept(server: Server) -> None:
    messages: list[Answer] = []
    with AudioCraft(server.url, ENVIRONMENT_KEY) as client:
        with client.live("solo cello", on_message=messages.append, seed=3, top_k=50, **START) as session:
            assert (session.started.seed, session.started.channels) == (3, 2)
            received = 0
            for block in session:
                if received == 0:
                    session.steer(prompts=["solo cello", {"text": "rain", "weight": -0.5}], bpm=90, transition=0.2)
                    session.steer(bpm=None)
                    session.steer(transition=0.5)
                    session.pause()
                    session.play()
                    session.reset_context()
                    session.report_playback(0.01)
                received += len(block)
                frames = [message.frame for message in messages if isinstance(message, AppliedAnswer)]
                if len(frames) == 7 and received > (max(frames) + 1) * FRAME_BYTES:
                    session.stop()
        assert session.ended is not None
        assert session.ended.performance is not None
        assert received == session.ended.frames * FRAME_BYTES
        performance = client.performance(session.ended.performance)
        texts = [[prompt.text for prompt in change.prompts] for change in performance.changes]
        assert texts[0] == ["solo cello"]
        assert ["solo cello. bpm: 90", "rain"] in texts
        assert texts[-1] == ["solo cello", "rain"]
        assert performance.changes[-1].reset_context
        result = client.generate(performance=session.ended.performance)
        assert result.recipe is not None
        assert result.recipe.performance is not None
        assert result.recipe.performance.frames == performance.frames


def test_the_asynchronous_session_goes_back_to_an_earlier_second(server: Server) -> None:
    async def play() -> tuple[int, int]:
        frames = received = 0
        async with AsyncAudioCraft(server.url, ENVIRONMENT_KEY) as client:

            def follow(message: Answer) -> None:
                nonlocal received
                if isinstance(message, AppliedAnswer) and message.to == "seek_back":
                    received = 10 * FRAME_BYTES  # the rest is taken back

            async with client.live("solo cello", on_message=follow, **START) as session:
                is_back = False
                async for block in session:
                    received += len(block)
                    if received >= 30 * FRAME_BYTES and not is_back:
                        is_back = True
                        await session.seek_back(0.2, "piano")
                        await session.stop()
            assert session.ended is not None
            frames = session.ended.frames
        return received, frames * FRAME_BYTES

    received, expected = asyncio.run(play())
    assert received == expected


def test_errors_have_the_classes_of_their_codes(server: Server) -> None:
    with AudioCraft(server.url, ENVIRONMENT_KEY) as client:
        with pytest.raises(InvalidRequestError, match="model_size"), client.live("solo cello", model_size="melody"):
            pass
        with client.live("solo cello", **START) as session:
            session.steer(temperature=9)
            with pytest.raises(InvalidRequestError) as caught:
                list(session)
            assert caught.value.errors is not None
    with (
        AudioCraft(server.url, "wrong") as client,
        pytest.raises(UnauthorizedError) as refused,
        client.live("solo cello"),
    ):
        pass
    assert refused.value.status == 401
    with AudioCraft("http://127.0.0.1:9") as client, pytest.raises(ConnectionFailedError), client.live("solo cello"):
        pass
