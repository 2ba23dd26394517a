"""Music over a WebSocket: what is said, who may speak, and that every way to leave frees what was held."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from simple_websocket import Client, ConnectionClosed
from werkzeug.serving import make_server

from support.http import fake_app
from support.served import Server, serve, wait_until
from support.streamed import BlockEngine

BLOCKED = "support.streamed:app"
REQUEST = {"prompt": "solo cello", "duration": 1}
DEMO = {"prompt": "warm analog synth arpeggio", "model_size": "demo", "duration": 2, "seed": 7}
WHOLE = 44 + 4 * 32_000  # bytes of one second in stereo
SECONDS = 20.0


class Conversation:
    """A client of `/ws/generate`."""

    def __init__(self, port: int, request: Any = None) -> None:
        self.ws = Client.connect(f"ws://127.0.0.1:{port}/ws/generate")
        self.messages: list[dict[str, Any]] = []
        self.audio = b""
        if request is not None:
            self.say(request)

    def say(self, message: Any) -> None:
        self.ws.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def hear(self) -> None:
        """Take the next message."""
        message = self.ws.receive(timeout=SECONDS)
        assert message is not None, "nothing came"
        if isinstance(message, bytes):
            self.audio += message
        else:
            self.messages.append(json.loads(message))

    def hear_all(self) -> dict[str, Any]:
        """Listen until the server closes; return the last message."""
        try:
            while True:
                self.hear()
        except ConnectionClosed:
            self.ws.thread.join(SECONDS)
            return self.messages[-1]

    @property
    def close_code(self) -> int:
        return int(self.ws.close_reason)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave it as it was."""
    with serve(tmp_path_factory.mktemp("server"), BLOCKED) as running:
        yield running


def test_progress_and_audio_come_and_the_samples_are_those_of_the_file(demo_checkpoints: Path, tmp_path: Path) -> None:
    with serve(tmp_path, checkpoints_dir=demo_checkpoints, offline=True) as server:
        answer = server.post("/generate", json=DEMO).json()
        with wave.open(io.BytesIO(server.get(answer["audio_url"]).content)) as file:
            samples = file.readframes(file.getnframes())
        conversation = Conversation(server.port, DEMO)
        done = conversation.hear_all()
        assert conversation.close_code == 1000
        assert conversation.audio[44:] == samples
        accepted, *steps = conversation.messages[:-1]
        assert accepted["type"] == "accepted"
        assert (accepted["seed"], accepted["format"], accepted["media_type"]) == (7, "wav", "audio/wav")
        assert {step["type"] for step in steps} == {"progress"}
        currents = [step["current"] for step in steps]
        assert currents == sorted(currents)
        assert {step["total"] for step in steps} == {100}
        assert currents[-1] == 100
        assert done["type"] == "done"
        same = ("duration", "sample_rate", "seed", "model", "revision", "format")
        assert {name: done[name] for name in same} == {name: answer[name] for name in same}


def test_an_encoded_stream_comes_whole(server: Server) -> None:
    conversation = Conversation(server.port, REQUEST | {"output_format": "mp3"})
    assert conversation.hear_all()["type"] == "done"
    assert conversation.audio == server.post("/generate-stream", json=REQUEST | {"output_format": "mp3"}).content


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        ({"prompt": "a", "duration": 99}, ["duration"]),
        ({"duration": 2}, ["prompt"]),
        ({"prompt": "a", "return_type": "url"}, ["return_type"]),
        ({"prompt": "a", "model_size": "enormous"}, ["model_size"]),
        ([1], []),
        ("no JSON", []),
        (b"\x00\x01", []),
        ("[" * 100_000, []),
    ],
    ids=["range", "missing", "unknown field", "unknown model", "array", "no JSON", "binary", "nested"],
)
def test_a_wrong_request_is_told_so_and_closed(server: Server, sent: Any, fields: list[str]) -> None:
    conversation = Conversation(server.port, sent)
    error = conversation.hear_all()
    assert (error["type"], error["code"], conversation.close_code) == ("error", "invalid_request", 1008)
    assert error["error"]
    assert error["request_id"]
    assert list(error.get("errors", {})) == fields


def test_a_message_over_the_limit_is_not_taken(server: Server) -> None:
    conversation = Conversation(server.port)
    conversation.say(" " * 300_000)
    with pytest.raises(ConnectionClosed):
        conversation.ws.receive(timeout=SECONDS)
    wait_until(lambda: server.num_running() == 0)


def test_a_failure_in_the_middle_is_told(server: Server) -> None:
    conversation = Conversation(server.port, REQUEST | {"prompt": "fail after 3"})
    error = conversation.hear_all()
    assert (error["type"], error["code"], conversation.close_code) == ("error", "generation_failed", 1011)
    assert 44 < len(conversation.audio) < WHOLE


@pytest.mark.timing
@pytest.mark.parametrize("way", ["a message", "a close", "no goodbye", "another message"])
@pytest.mark.parametrize("moment", ["hold after 0", "hold after 4"])
def test_every_way_to_leave_stops_the_generation(tmp_path: Path, hold: Path, way: str, moment: str) -> None:
    with serve(tmp_path, BLOCKED, threads=4) as server:
        conversation = Conversation(server.port, REQUEST | {"prompt": moment})
        conversation.hear()
        wait_until(lambda: server.num_running() == 1)
        left = time.monotonic()
        if way == "a close":
            conversation.ws.close()
        elif way == "no goodbye":
            conversation.ws.sock.shutdown(socket.SHUT_RDWR)
        else:
            conversation.say({"type": "cancel"} if way == "a message" else {"type": "louder"})
            error = conversation.hear_all()
            assert error["code"] == ("canceled" if way == "a message" else "invalid_request")
            assert conversation.close_code == (1000 if way == "a message" else 1008)
        wait_until(lambda: server.num_running() == 0)
        assert time.monotonic() - left < 1.5
        assert hold.exists()
        wait_until(lambda: server.post("/generate-stream", json=REQUEST).status_code == 200)  # the one place is free
        assert "Traceback" not in server.log


def test_a_listener_that_does_not_read_loses_its_place(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, threads=4, socket_timeout_seconds=1) as server:
        connection = shake_hands(server, receive_buffer=4096)
        text = json.dumps(REQUEST | {"duration": 30, "output_format": "wav32f"}).encode()
        connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)  # masked with zeros
        wait_until(lambda: server.num_running() == 1)
        wait_until(lambda: server.num_running() == 0)
        wait_until(lambda: server.post("/generate-stream", json=REQUEST).status_code == 200)
        connection.close()


def test_a_silent_client_is_closed(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, socket_timeout_seconds=1) as server:
        conversation = Conversation(server.port)
        assert conversation.hear_all()["error"].startswith("No request was received")
        # One that does not even answer pings, while its audio is waited for.
        (tmp_path / "hold").touch()
        connection = shake_hands(server)
        text = json.dumps(REQUEST | {"prompt": "hold after 0"}).encode()
        connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
        wait_until(lambda: server.num_running() == 1)
        wait_until(lambda: server.num_running() == 0, 5)
        connection.close()
        (tmp_path / "hold").unlink()


def shake_hands(server: Server, receive_buffer: int = 0, **headers: str) -> socket.socket:
    """Open a WebSocket by hand; return it right after the answer's status line."""
    connection = socket.socket()
    connection.settimeout(SECONDS)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", server.port))
    lines = HANDSHAKE | {"Host": "a"} | headers
    text = "GET /ws/generate HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection.sendall(text.encode() + b"\r\n")
    assert connection.recv(12) == b"HTTP/1.1 101"
    return connection


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        HANDSHAKE | {"Sec-WebSocket-Key": "short"},
        HANDSHAKE | {"Sec-WebSocket-Key": "short!!"},
        HANDSHAKE | {"Sec-WebSocket-Key": "\xe9" * 24},
        HANDSHAKE | {"Sec-WebSocket-Version": "8"},
    ],
    ids=["no upgrade", "bad key", "no base64", "no ASCII", "old version"],
)
def test_what_is_no_handshake_is_400_in_the_usual_shape(server: Server, headers: dict[str, str]) -> None:
    response = server.get("/ws/generate", headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_pages_of_foreign_origins_are_refused_where_origins_are_listed(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, cors_origins="https://a.example") as server:
        for origin in (
            "https://evil.example",
            "http://a.example",
            "null",
            "http://[",
            "https://a.example.evil.example",
        ):
            response = server.get("/ws/generate", headers=HANDSHAKE | {"Origin": origin})
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        for headers in ({"Origin": "https://a.example"}, {"Origin": "http://a:5000", "Host": "a:5000"}, {}):
            shake_hands(server, **headers).close()


def test_websockets_and_streams_share_one_cap(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, BLOCKED, max_streams=4) as server, ThreadPoolExecutor(2) as pool:
        held = REQUEST | {"prompt": "hold after 2"}
        streams = [pool.submit(server.post, "/generate-stream", json=held) for _ in range(2)]
        conversations = [Conversation(server.port, held) for _ in range(2)]
        wait_until(lambda: server.num_running() == 4)
        refused = server.get("/ws/generate", headers=HANDSHAKE)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.post("/generate-stream", json=REQUEST).status_code == 503
        hold.unlink()
        assert [len(stream.result().content) for stream in streams] == [WHOLE] * 2
        assert [conversation.hear_all()["type"] for conversation in conversations] == ["done"] * 2
        assert [len(conversation.audio) for conversation in conversations] == [WHOLE] * 2


@pytest.mark.timing
def test_open_websockets_do_not_hold_a_stop(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, graceful_timeout_seconds=20) as server:
        conversations = [Conversation(server.port) for _ in range(3)]
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 5
        for conversation in conversations:
            assert conversation.hear_all()["code"] == "shutting_down"
            assert conversation.close_code == 1001


def test_a_stopping_server_lets_a_running_one_finish(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, BLOCKED, graceful_timeout_seconds=20) as server:
        conversation = Conversation(server.port, REQUEST | {"prompt": "hold after 2"})
        wait_until(lambda: server.num_running() == 1)
        server.process.terminate()
        wait_until(lambda: "Draining" in server.log)
        hold.unlink()
        assert conversation.hear_all()["type"] == "done"
        assert len(conversation.audio) == WHOLE
        assert server.process.wait(10) == 0


def test_nothing_is_left_over_after_many_websockets(server: Server) -> None:
    def converse(number: int) -> str:
        prompt = ("solo cello", "fail after 3")[number % 2]
        return str(Conversation(server.port, REQUEST | {"prompt": prompt}).hear_all()["type"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(converse, range(40))) == ["done", "error"] * 20
    assert server.get("/ws/generate", headers=HANDSHAKE | {"Connection": "close"}).status_code == 400
    assert server.log.count("GET /ws/generate 200") >= 40
    assert "Traceback" not in server.log


def test_the_development_server_speaks_it_too(tmp_path: Path) -> None:
    development = make_server("127.0.0.1", 0, fake_app(tmp_path, BlockEngine()), threaded=True)
    thread = threading.Thread(target=development.serve_forever)
    thread.start()
    try:
        conversation = Conversation(development.server_port, REQUEST)
        assert conversation.hear_all()["type"] == "done"
        assert len(conversation.audio) == WHOLE
        url = f"http://127.0.0.1:{development.server_port}/generate-stream"
        assert len(requests.post(url, json=REQUEST, timeout=SECONDS).content) == WHOLE
    finally:
        development.shutdown()
        thread.join(SECONDS)
        development.server_close()
