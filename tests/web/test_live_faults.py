"""Live sessions when something goes wrong: the engine fails, the server stops, clients stall, vanish or attack."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from websockets.sync.client import connect

from audiocraft_api.core.errors import GenerationFailed
from audiocraft_api.web.services import services_of
from support.live import playing
from support.live_client import HOSTILE, START, TIMEOUT_SECONDS, LiveClient
from support.served import wait_until


def test_a_draining_server_ends_sessions_with_a_message(tmp_path: Path) -> None:
    with playing(tmp_path) as (port, _, app):
        client = LiveClient(port, START)
        client.receive_until("started")
        services_of(app).draining.set()
        ended = client.receive_all()
        assert (ended["type"], ended["reason"], client.close_code) == ("ended", "draining", 1001)


def test_a_failing_engine_ends_a_session_with_its_performance_and_an_error(tmp_path: Path) -> None:
    with playing(tmp_path) as (port, engine, _):
        client = LiveClient(port, START)
        client.receive_audio(10)
        engine.failure = GenerationFailed("It failed.")
        error = client.receive_all()
        assert (error["type"], error["error"], client.close_code) == ("error", "It failed.", 1011)
        ended = client.messages[-2]
        assert (ended["type"], ended["reason"]) == ("ended", "generation_failed")
        assert ended["performance"]


@pytest.mark.parametrize("way", HOSTILE)
def test_a_hostile_client_leaves_nothing_behind(tmp_path: Path, way: Callable[[LiveClient], None]) -> None:
    with playing(tmp_path, live_messages_per_second=20) as (port, engine, app):
        LiveClient(port, START | {"duration": 1}).receive_all()  # starts the threads and opens the files that stay
        process = psutil.Process()
        wait_until(lambda: services_of(app).live_sessions.num_open == 0)
        threads, descriptors = threading.active_count(), process.num_fds()
        client = LiveClient(port, START)
        client.receive_until("started")
        way(client)
        wait_until(lambda: engine.live[-1].has_ended)
        wait_until(lambda: services_of(app).stream_slots.num_open == services_of(app).live_sessions.num_open == 0)
        client.ws.thread.join(TIMEOUT_SECONDS)
        wait_until(lambda: threading.active_count() <= threads and process.num_fds() <= descriptors)


def test_a_client_that_reads_nothing_is_disconnected(tmp_path: Path) -> None:
    with playing(tmp_path, socket_timeout_seconds=1) as (port, engine, app):
        with connect(f"ws://127.0.0.1:{port}/ws/live", max_queue=1, ping_interval=None, close_timeout=1) as stalled:
            stalled.send(json.dumps(START))
            wait_until(lambda: engine.live and engine.live[0].num_frames_done)
            wait_until(lambda: engine.live[0].has_ended)
            wait_until(lambda: services_of(app).stream_slots.num_open == services_of(app).live_sessions.num_open == 0)
        assert 'ends_total{reason="disconnected"} 1.0' in app.test_client().get("/metrics").text
