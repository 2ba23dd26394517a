"""Live sessions over a WebSocket, against a real server: messages, limits, and performances that play again."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import soundfile
from flask.testing import FlaskClient

from audiocraft_api.access.caller import Caller
from audiocraft_api.web.services import services_of
from support.keys import create_key, with_key
from support.live import playing
from support.live_client import FRAME_BYTES, HOSTILE, START, TIMEOUT_SECONDS, LiveClient
from support.served import Server, serve, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo_checkpoints: Path) -> Iterator[Server]:
    """A server with the demo models."""
    settings = {"precision": "exact", "live_max_sessions": 3, "live_max_sessions_per_key": 0}
    with serve(tmp_path_factory.mktemp("live"), checkpoints_dir=demo_checkpoints, offline=True, **settings) as running:
        yield running


def test_a_session_changes_at_the_frames_that_it_reports_and_its_performance_plays_again(server: Server) -> None:
    client = LiveClient(server.port, START | {"lead": 1.0})
    started = client.receive_until("started")
    assert (started["seed"], started["model"], started["sample_rate"], started["channels"]) == (3, "demo", 32_000, 1)
    prompts = [{"text": "rock guitar", "weight": 2}, {"text": "organ"}, {"text": "drums", "weight": -1}]
    client.send({"type": "transition", "seconds": 0.2, "id": "a"})
    client.send({"type": "prompts", "prompts": prompts, "id": "b"})
    client.send({"type": "config", "temperature": 0.8, "top_k": 50, "bpm": 120, "key": "C# minor"})
    frames = []
    for name in ("transition", "prompts", "config"):
        applied = client.receive_until("applied")
        assert applied["to"] == name
        frames.append(applied["frame"])
    assert [message.get("id") for message in client.messages if message["type"] == "applied"] == ["a", "b", None]
    client.receive_audio(frames[-1] + 20)
    client.send({"type": "reset_context"})
    frames.append(client.receive_until("applied")["frame"])
    client.receive_audio(frames[-1] + 10)
    client.send({"type": "stop"})
    ended = client.receive_all()
    assert (ended["type"], ended["reason"], client.close_code) == ("ended", "stopped", 1000)
    assert ended["performance"] == started["performance"]
    assert len(client.audio) == ended["frames"] * FRAME_BYTES

    performance = server.get(f"/performances/{ended['performance']}").json()
    assert (performance["frames"], performance["model"], performance["seed"]) == (ended["frames"], "demo", 3)
    assert performance["precision"] == "exact"
    assert [change["frame"] for change in performance["changes"]] == [0, *frames[1:]]
    second = performance["changes"][2]
    assert [prompt["text"] for prompt in second["prompts"]] == [
        "rock guitar. bpm: 120. key: C# minor",
        "organ. bpm: 120. key: C# minor",
        "drums",
    ]
    assert (second["temperature"], second["top_k"], second["transition"]) == (0.8, 50, 0.2)

    body = server.post("/generate", json={"performance": ended["performance"]}).json()
    samples, _ = soundfile.read(io.BytesIO(server.get(body["audio_url"]).content), dtype="int16")
    assert samples.tobytes() == client.audio
    assert body["recipe"]["performance"]["changes"] == performance["changes"]
    stream = server.post("/generate-stream", json={"performance": body["recipe"]["performance"]})
    assert stream.content[44:] == client.audio
    task = server.post("/generate-async", json={"performance": performance, "output_format": "flac"}).json()
    wait_until(lambda: server.get(f"/tasks/{task['task_id']}").json()["status"] == "completed", TIMEOUT_SECONDS)
    samples, _ = soundfile.read(io.BytesIO(server.get(f"/audio/{task_file(server, task)}").content), dtype="int16")
    assert samples.tobytes() == client.audio


def task_file(server: Server, task: dict[str, Any]) -> str:
    return str(server.get(f"/tasks/{task['task_id']}").json()["result"]["filename"])


def test_seek_back_goes_on_from_an_earlier_second(server: Server) -> None:
    client = LiveClient(server.port, START)
    client.receive_audio(40)
    client.send({"type": "seek_back", "position": 0.5, "prompts": [{"text": "organ"}]})
    assert client.receive_until("applied")["frame"] == 25
    client.audio = b""
    client.receive_audio(20)
    client.send({"type": "stop"})
    ended = client.receive_all()
    changes = server.get(f"/performances/{ended['performance']}").json()["changes"]
    assert [(change["frame"], change["prompts"][0]["text"]) for change in changes] == [(0, "jazz piano"), (25, "organ")]
    assert len(client.audio) == (ended["frames"] - 25) * FRAME_BYTES


def test_seek_back_to_a_change_that_may_not_be_heard_yet_loses_no_audio(server: Server) -> None:
    client = LiveClient(server.port, START)
    client.receive_audio(10)
    client.send({"type": "pause"})
    client.send({"type": "prompts", "prompts": [{"text": "organ"}], "id": "change"})
    while (applied := client.receive_until("applied")).get("id") != "change":
        pass
    frame = applied["frame"]
    client.send({"type": "seek_back", "position": (frame + 1) / 50, "prompts": [{"text": "drums"}]})
    client.send({"type": "play"})
    while (sought := client.receive_until("applied"))["to"] != "seek_back":
        pass
    assert sought["frame"] == frame + 1
    assert len(client.audio) >= (frame + 1) * FRAME_BYTES
    client.audio = client.audio[: (frame + 1) * FRAME_BYTES]
    client.send({"type": "stop"})
    ended = client.receive_all()
    assert len(client.audio) == ended["frames"] * FRAME_BYTES
    changes = server.get(f"/performances/{ended['performance']}").json()["changes"]
    assert [change["frame"] for change in changes] == [0, frame, frame + 1]


def test_a_refused_prompt_is_reported_and_the_music_plays_on(server: Server) -> None:
    client = LiveClient(server.port, START)
    client.receive_until("started")
    client.send({"type": "prompts", "prompts": [{"text": "organ"}, {"text": "sad piano, kill yourself"}], "id": "x"})
    filtered = client.receive_until("filtered_prompt")
    assert (filtered["text"], filtered["id"]) == ("sad piano, kill yourself", "x")
    assert filtered["category"]
    assert filtered["suggestion"]
    client.receive_audio(40)
    client.send({"type": "stop"})
    assert client.receive_all()["frames"] >= 40


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        ({"type": "start", "model_size": "demo"}, ["prompts"]),
        (START | {"model_size": "demo-melody"}, ["model_size"]),
        (START | {"model_size": "enormous"}, ["model_size"]),
        (START | {"prompts": [{"text": "a", "weight": 0}]}, ["prompts"]),
        (START | {"prompts": [{"text": "a", "weight": -1}]}, ["prompts"]),
        (START | {"prompts": [{"text": "a"}, {"text": "a"}]}, ["prompts"]),
        (START | {"prompts": [{"text": str(number)} for number in range(1000)]}, ["prompts"]),
        (START | {"extend_stride": 40}, ["extend_stride"]),
        (START | {"louder": True}, ["louder"]),
        ({"type": "play"}, []),
        ({"type": "louder"}, ["type"]),
        ([1], []),
        ("no JSON", []),
        (b"\x00\x01", []),
        ("[" * 100_000, []),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, list) else None,
)
def test_an_invalid_start_gets_an_error_and_is_closed(live_port: int, sent: Any, fields: list[str]) -> None:
    client = LiveClient(live_port, sent)
    error = client.receive_all()
    assert (error["type"], error["code"], client.close_code) == ("error", "invalid_request", 1008)
    assert list(error.get("errors", {})) == fields


@pytest.fixture(scope="module")
def live_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server whose engine plays a tone."""
    settings = {"live_max_sessions": 4, "live_max_sessions_per_key": 0}
    with playing(tmp_path_factory.mktemp("tone"), **settings) as (port, _, _):
        yield port


def test_a_model_that_cannot_play_live_is_refused_with_those_that_can(live_port: int) -> None:
    error = LiveClient(live_port, START | {"model_size": "demo-melody"}).receive_all()["error"]
    assert "demo-melody" in error
    assert "demo, demo-stereo" in error


def test_an_invalid_message_is_rejected_and_the_music_plays_on(live_port: int) -> None:
    client = LiveClient(live_port, START)
    client.receive_until("started")
    messages = ["no JSON", {"type": "louder"}, {"type": "config", "top_k": -1, "id": "k"}, START, b"\x00"]
    for message in [*messages, {"type": "seek_back", "position": 60}]:
        client.send(message)
        rejected = client.receive_until("rejected")
        assert rejected["code"] == "invalid_request"
        assert rejected["error"]
    assert {message.get("id") for message in client.messages if message["type"] == "rejected"} == {None, "k"}
    client.send({"type": "stop"})
    assert client.receive_all()["type"] == "ended"


def test_pause_holds_the_generation_and_play_goes_on(live_port: int) -> None:
    client = LiveClient(live_port, START | {"paused": True, "lead": 1.0})
    client.receive_audio(2 * 50)  # two channels
    client.send({"type": "pause"})
    assert client.receive_until("applied")["frame"] == 0
    client.send({"type": "playback", "position": 0.5})
    client.receive_audio(2 * 75)
    assert len(client.audio) == 2 * 75 * FRAME_BYTES
    client.send({"type": "play"})
    client.receive_audio(2 * 90)
    client.send({"type": "stop"})
    client.receive_all()


def test_sessions_are_limited_in_all_and_for_each_caller(tmp_path: Path) -> None:
    with playing(tmp_path, live_max_sessions=2, live_max_sessions_per_key=1) as (port, _, app):
        first = LiveClient(port, START)
        first.receive_until("started")
        refused = LiveClient(port, START)
        assert (refused.receive_all()["code"], refused.close_code) == ("too_many_requests_at_once", 1013)
        with services_of(app).live_sessions.admit("another"):
            third = LiveClient(port, START)
            assert third.receive_all()["code"] in ("too_many_requests_at_once", "too_many_streams")
        first.ws.close()
        wait_until(lambda: services_of(app).live_sessions.num_open == 0)
        with services_of(app).live_sessions.admit("a"), services_of(app).live_sessions.admit("b"):
            assert LiveClient(port, START).receive_all()["code"] == "too_many_streams"


@pytest.mark.parametrize(
    ("settings", "start", "reason"),
    [
        ({"live_max_seconds": 10}, {"duration": 1}, "limit"),
        ({"live_idle_seconds": 1}, {}, "idle"),
        ({"live_max_paused_seconds": 1}, {"paused": True}, "paused"),
        ({"audio_seconds_per_day": 2}, {}, "quota"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_session_over_a_limit_ends_with_the_reason(
    tmp_path: Path, settings: dict[str, Any], start: dict[str, Any], reason: str
) -> None:
    with playing(tmp_path, **settings) as (port, engine, app):
        client = LiveClient(port, START | start)
        ended = client.receive_all()
        assert (ended["type"], ended["reason"], client.close_code) == ("ended", reason, 1000)
        assert len(client.audio) == 2 * FRAME_BYTES * ended["frames"]
        if reason == "limit":
            assert ended["frames"] == 50
        wait_until(lambda: services_of(app).stream_slots.num_open == services_of(app).live_sessions.num_open == 0)
        assert engine.live[0].has_ended


def test_seconds_that_were_made_are_charged(tmp_path: Path) -> None:
    with playing(tmp_path, audio_seconds_per_day=100, requests_per_day=5) as (port, _, app):
        LiveClient(port, START | {"duration": 3}).receive_all()
        remaining = {state.name: state.remaining for state in services_of(app).limits.peek(Caller(None), "127.0.0.1")}
        assert remaining == {"day": 4, "audio-day": 97}


def test_sessions_are_counted(tmp_path: Path) -> None:
    with playing(tmp_path) as (port, _, app):
        client = LiveClient(port, START | {"lead": 1.0})
        client.receive_until("started")
        client.send({"type": "prompts", "prompts": [{"text": "organ"}]})
        frame = client.receive_until("applied")["frame"]
        client.receive_audio(2 * (frame + 60))  # two channels, and the audio of the lead
        client.send({"type": "stop"})
        client.receive_all()
        LiveClient(port, START | {"duration": 1}).receive_all()
        gone = LiveClient(port, START)
        gone.receive_until("started")
        gone.ws.close()
        wait_until(lambda: services_of(app).live_sessions.num_open == 0)
        shown = app.test_client().get("/metrics").text
        for reason in ("stopped", "limit", "disconnected"):
            assert f'audiocraft_api_live_session_ends_total{{reason="{reason}"}} 1.0' in shown
        assert "audiocraft_api_live_change_seconds_count 1.0" in shown
        assert "audiocraft_api_live_sessions 0.0" in shown


def test_the_performance_of_a_client_that_vanishes_is_kept(server: Server) -> None:
    client = LiveClient(server.port, START | {"lead": 1.0})
    performance = client.receive_until("started")["performance"]
    client.send({"type": "prompts", "prompts": [{"text": "organ"}]})
    frame = client.receive_until("applied")["frame"]
    client.receive_audio(frame + 10)
    assert server.get(f"/performances/{performance}").status_code == 404
    client.ws.sock.shutdown(socket.SHUT_RDWR)
    client.ws.thread.join(TIMEOUT_SECONDS)
    wait_until(lambda: server.get(f"/performances/{performance}").status_code == 200, TIMEOUT_SECONDS)
    kept = server.get(f"/performances/{performance}").json()
    texts = [(change["frame"], change["prompts"][0]["text"]) for change in kept["changes"]]
    assert texts == [(0, "jazz piano"), (frame, "organ")]
    assert kept["frames"] * FRAME_BYTES >= len(client.audio)
    samples = server.post("/generate-stream", json={"performance": performance}).content[44:]
    assert samples[: len(client.audio)] == client.audio


def test_hostile_clients_do_not_disturb_a_session_beside_them(server: Server) -> None:
    steady = LiveClient(server.port, START | {"lead": 1.0})
    steady.receive_until("started")
    worker = psutil.Process(server.worker_pid())
    threads, descriptors = worker.num_threads(), worker.num_fds()
    for way in HOSTILE:
        hostile = LiveClient(server.port, START)
        hostile.receive_until("started")
        way(hostile)
        hostile.ws.thread.join(TIMEOUT_SECONDS)
        wait_until(lambda: server.num_running() == 1, TIMEOUT_SECONDS)
    steady.send({"type": "prompts", "prompts": [{"text": "organ"}]})
    frame = steady.receive_until("applied")["frame"]
    steady.receive_audio(frame + 10)
    steady.send({"type": "stop"})
    ended = steady.receive_all()
    assert ended["reason"] == "stopped"
    replayed = server.post("/generate-stream", json={"performance": ended["performance"]}).content[44:]
    assert replayed == steady.audio
    wait_until(lambda: server.num_running() == 0, TIMEOUT_SECONDS)
    wait_until(lambda: worker.num_threads() <= threads and worker.num_fds() <= descriptors, TIMEOUT_SECONDS)


def test_performances_belong_to_their_owner(tmp_path: Path) -> None:
    with playing(tmp_path) as (port, _, app):
        own, other = create_key(app), create_key(app)
        ended = LiveClient(port, START | {"duration": 1}, headers=with_key(own)).receive_all()
        url, body = f"http://127.0.0.1:{port}", {"performance": ended["performance"]}
        path = f"{url}/performances/{ended['performance']}"
        for key, status in ((own, 200), (other, 404)):
            assert requests.get(path, headers=with_key(key), timeout=TIMEOUT_SECONDS).status_code == status
        refused = requests.post(f"{url}/generate", json=body, headers=with_key(other), timeout=TIMEOUT_SECONDS)
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"frames": 0}, ["performance"]),
        ({"frames": 50 * 31}, ["performance"]),
        ({"model": "demo-melody"}, ["performance"]),
        ({"changes": []}, ["performance"]),
        ({"changes": [{"frame": 1, "prompts": [{"text": "a"}]}]}, ["performance"]),
        ({"changes": [{"frame": 0, "prompts": [{"text": "a"}]}] * 2}, ["performance"]),
        ({"extend_stride": 29.99}, []),
    ],
)
def test_an_edited_performance_is_checked(client: FlaskClient, changes: dict[str, Any], fields: list[str]) -> None:
    plain = {"frames": 50, "model": "demo", "seed": 1, "changes": [{"frame": 0, "prompts": [{"text": "a"}]}]}
    response = client.post("/generate", json={"performance": plain | changes})
    assert list(response.get_json().get("errors", {})) == fields
    assert response.status_code == (400 if fields else 200)


def test_a_performance_cannot_be_combined_with_controls(client: FlaskClient) -> None:
    body = {"performance": "0" * 36, "prompt": "a", "seed": 1}
    assert set(client.post("/generate", json=body).get_json()["errors"]) == {"prompt", "seed"}
