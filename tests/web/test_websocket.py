"""Streaming over a WebSocket: messages, errors, origins, and the release of resources however a connection ends."""

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
import soundfile
from simple_websocket import Client, ConnectionClosed
from werkzeug.serving import make_server

from support.http import fake_app
from support.served import Server, serve, wait_until
from support.streamed import BlockEngine

BLOCKED = "support.streamed:app"
REQUEST = {"prompt": "solo cello", "duration": 1}
DEMO = {"prompt": "warm analog synth arpeggio", "model_size": "demo", "duration": 2, "seed": 7}
NUM_BYTES = 44 + 4 * 32_000  # bytes of one second in stereo
TIMEOUT_SECONDS = 20.0


class StreamClient:
    """A client of `/ws/generate`."""

    def __init__(self, port: int, request: Any = None) -> None:
        self.ws = Client.connect(f"ws://127.0.0.1:{port}/ws/generate")
        self.messages: list[dict[str, Any]] = []
        self.audio = b""
        if request is not None:
            self.send(request)

    def send(self, message: Any) -> None:
        self.ws.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def receive(self) -> None:
        """Receive the next message and store it."""
        message = self.ws.receive(timeout=TIMEOUT_SECONDS)
        assert message is not None, "no message was received"
        if isinstance(message, bytes):
            self.audio += message
        else:
            self.messages.append(json.loads(message))

    def receive_all(self) -> dict[str, Any]:
        """Receive until the server closes the connection; return the last message."""
        try:
            while True:
                self.receive()
        except ConnectionClosed:
            self.ws.thread.join(TIMEOUT_SECONDS)
            return self.messages[-1]

    @property
    def close_code(self) -> int:
        return int(self.ws.close_reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that do not change its state."""
    with serve(tmp_path_factory.mktemp("server"), BLOCKED) as running:
        yield running


def test_progress_and_audio_are_sent_and_the_samples_match_the_file(demo_checkpoints: Path, tmp_path: Path) -> None:
    with serve(tmp_path, checkpoints_dir=demo_checkpoints, offline=True) as server:
        body = server.post("/generate", json=DEMO).json()
        with wave.open(io.BytesIO(server.get(body["audio_url"]).content)) as file:
            samples = file.readframes(file.getnframes())
        client = StreamClient(server.port, DEMO)
        done = client.receive_all()
        assert client.close_code == 1000
        assert client.audio[44:] == samples
        accepted, *steps = client.messages[:-1]
        assert accepted["type"] == "accepted"
        assert (accepted["seed"], accepted["format"], accepted["media_type"]) == (7, "wav", "audio/wav")
        assert {step["type"] for step in steps} == {"progress"}
        currents = [step["current"] for step in steps]
        assert currents == sorted(currents)
        assert {step["total"] for step in steps} == {100}
        assert currents[-1] == 100
        assert done["type"] == "done"
        same = ("duration", "sample_rate", "seed", "model", "revision", "format")
        assert {name: done[name] for name in same} == {name: body[name] for name in same}

        # Segments over two windows: the second begins with the new prompt.
        segments = [
            {"prompt": "piano", "duration": 29.5},
            {"prompt": "choir", "duration": 1, "negative_prompt": "drums"},
        ]
        long = {"segments": segments, "model_size": "demo", "seed": 7, "extend_stride": 29}
        client = StreamClient(server.port, long)
        done = client.receive_all()
        assert (done["type"], done["duration"]) == ("done", 30.5)
        assert client.messages[-2] == {"type": "progress", "current": 1525, "total": 1525}
        assert client.audio == server.post("/generate-stream", json=long).content


def test_a_waiting_client_is_told_its_place_in_the_queue_once(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with serve(tmp_path, BLOCKED) as server:
        client = StreamClient(server.port, REQUEST | {"prompt": "wait at 2"})
        client.receive()
        client.receive()
        hold.unlink()
        client.receive_all()
    assert client.messages[1] == {"type": "queued", "queue_position": 2, "eta_seconds": 12.3}
    assert [message["type"] for message in client.messages].count("queued") == 1


def test_a_stream_may_be_long(server: Server) -> None:
    client = StreamClient(server.port, REQUEST | {"duration": 61})
    done = client.receive_all()
    assert (done["type"], done["duration"], client.close_code) == ("done", 61.0, 1000)
    assert len(client.audio) == 44 + 61 * 128_000
    assert client.messages[-2] == {"type": "progress", "current": 3050, "total": 3050}


def test_a_stream_is_stored_in_the_format_of_choice(server: Server) -> None:
    done = StreamClient(server.port, REQUEST | {"seed": 3, "file_format": "flac"}).receive_all()
    assert (done["type"], done["format"], done["file_format"]) == ("done", "wav", "flac")
    generated = server.post("/generate", json=REQUEST | {"seed": 3, "output_format": "flac"}).json()
    stored, expected = (io.BytesIO(server.get(body["audio_url"]).content) for body in (done, generated))
    assert (soundfile.read(stored)[0] == soundfile.read(expected)[0]).all()


def test_a_stream_is_not_stored_unless_asked(server: Server) -> None:
    assert "audio_url" not in StreamClient(server.port, REQUEST).receive_all()


def test_a_stream_continues_a_result_and_leaves_it_out_on_request(server: Server) -> None:
    url = server.post("/generate", json=REQUEST).json()["audio_url"]
    for include_input, seconds in ((True, 2), (False, 1)):
        reference = {"audio_url": url, "include_input": include_input}
        client = StreamClient(server.port, REQUEST | {"continue_from": reference})
        done = client.receive_all()
        assert (done["type"], done["duration"]) == ("done", float(seconds))
        assert len(client.audio) == 44 + seconds * 128_000


def test_an_encoded_stream_is_complete(server: Server) -> None:
    client = StreamClient(server.port, REQUEST | {"output_format": "mp3"})
    assert client.receive_all()["type"] == "done"
    assert client.audio == server.post("/generate-stream", json=REQUEST | {"output_format": "mp3"}).content


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        ({"prompt": "a", "duration": 999}, ["duration"]),
        ({"duration": 2}, ["prompt"]),
        ({"prompt": "a", "return_type": "url"}, ["return_type"]),
        ({"prompt": "a", "segments": [{"prompt": "a", "duration": 2}]}, ["prompt"]),
        ({"prompt": "a", "negative_prompt": "b", "cfg_coef": 1}, ["negative_prompt"]),
        ({"prompt": "a", "duration": 31, "extend_stride": 30}, ["extend_stride"]),
        ({"prompt": "a", "n": 2}, ["n"]),
        ({"prompt": "a", "model_size": "enormous"}, ["model_size"]),
        ([1], []),
        ("no JSON", []),
        (b"\x00\x01", []),
        ("[" * 100_000, []),
    ],
    ids=[
        *("range", "missing", "unknown field", "prompt with segments", "negative prompt without guidance", "stride"),
        *("variations", "unknown model", "array", "no JSON", "binary", "nested"),
    ],
)
def test_an_invalid_request_gets_an_error_and_is_closed(server: Server, sent: Any, fields: list[str]) -> None:
    client = StreamClient(server.port, sent)
    error = client.receive_all()
    assert (error["type"], error["code"], client.close_code) == ("error", "invalid_request", 1008)
    assert error["error"]
    assert error["request_id"]
    assert list(error.get("errors", {})) == fields


def test_a_message_over_the_size_limit_closes_the_connection(server: Server) -> None:
    client = StreamClient(server.port)
    client.send(" " * 300_000)
    with pytest.raises(ConnectionClosed):
        client.ws.receive(timeout=TIMEOUT_SECONDS)
    wait_until(lambda: server.num_running() == 0)


def test_a_failure_during_the_stream_is_an_error_message(server: Server) -> None:
    client = StreamClient(server.port, REQUEST | {"prompt": "fail after 3"})
    error = client.receive_all()
    assert (error["type"], error["code"], client.close_code) == ("error", "generation_failed", 1011)
    assert 44 < len(client.audio) < NUM_BYTES


@pytest.mark.timing
@pytest.mark.parametrize("way", ["cancel message", "close", "shutdown", "unknown message"])
@pytest.mark.parametrize("moment", ["hold after 0", "hold after 4"])
def test_every_way_to_disconnect_stops_the_generation(tmp_path: Path, hold: Path, way: str, moment: str) -> None:
    with serve(tmp_path, BLOCKED, threads=4) as server:
        client = StreamClient(server.port, REQUEST | {"prompt": moment})
        client.receive()
        wait_until(lambda: server.num_running() == 1)
        left = time.monotonic()
        if way == "close":
            client.ws.close()
        elif way == "shutdown":
            client.ws.sock.shutdown(socket.SHUT_RDWR)
        else:
            client.send({"type": "cancel"} if way == "cancel message" else {"type": "louder"})
            error = client.receive_all()
            assert error["code"] == ("canceled" if way == "cancel message" else "invalid_request")
            assert client.close_code == (1000 if way == "cancel message" else 1008)
        wait_until(lambda: server.num_running() == 0)
        assert time.monotonic() - left < 1.5
        assert hold.exists()
        wait_until(lambda: server.post("/generate-stream", json=REQUEST).status_code == 200)  # the slot is free
        assert "Traceback" not in server.log


def test_a_client_that_does_not_read_loses_its_slot(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, threads=4, socket_timeout_seconds=1) as server:
        connection = open_websocket(server, receive_buffer=4096)
        text = json.dumps(REQUEST | {"duration": 30, "output_format": "wav32f"}).encode()
        connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)  # masked with zeros
        received = connection.recv(4096)
        while len(received) < 8192:  # the audio has begun
            received += connection.recv(4096) or pytest.fail("the server closed the connection")
        wait_until(lambda: server.num_running() == 0)
        wait_until(lambda: server.post("/generate-stream", json=REQUEST).status_code == 200)
        connection.close()


def test_a_silent_client_is_closed(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, socket_timeout_seconds=1) as server:
        client = StreamClient(server.port)
        assert client.receive_all()["error"].startswith("No request was received")
        # A raw socket, which does not respond to pings during the generation.
        (tmp_path / "hold").touch()
        connection = open_websocket(server)
        text = json.dumps(REQUEST | {"prompt": "hold after 0"}).encode()
        connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
        wait_until(lambda: server.num_running() == 1)
        wait_until(lambda: server.num_running() == 0)
        connection.close()
        (tmp_path / "hold").unlink()


def open_websocket(server: Server, receive_buffer: int = 0, **headers: str) -> socket.socket:
    """Open a WebSocket on a raw socket; return it after the status line of the response."""
    connection = socket.socket()
    connection.settimeout(TIMEOUT_SECONDS)
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
def test_an_invalid_handshake_is_400_in_the_common_error_format(server: Server, headers: dict[str, str]) -> None:
    response = server.get("/ws/generate", headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_other_origins_are_refused_when_origins_are_configured(tmp_path: Path) -> None:
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
            open_websocket(server, **headers).close()


def test_websockets_and_streams_share_one_limit(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, BLOCKED, max_streams=4) as server, ThreadPoolExecutor(2) as pool:
        held = REQUEST | {"prompt": "hold after 2"}
        streams = [pool.submit(server.post, "/generate-stream", json=held) for _ in range(2)]
        clients = [StreamClient(server.port, held) for _ in range(2)]
        wait_until(lambda: server.num_running() == 4)
        refused = server.get("/ws/generate", headers=HANDSHAKE)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.post("/generate-stream", json=REQUEST).status_code == 503
        hold.unlink()
        assert [len(stream.result().content) for stream in streams] == [NUM_BYTES] * 2
        assert [client.receive_all()["type"] for client in clients] == ["done"] * 2
        assert [len(client.audio) for client in clients] == [NUM_BYTES] * 2


@pytest.mark.timing
def test_open_websockets_do_not_delay_a_shutdown(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, graceful_timeout_seconds=20) as server:
        clients = [StreamClient(server.port) for _ in range(3)]
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 5
        for client in clients:
            assert client.receive_all()["code"] == "shutting_down"
            assert client.close_code == 1001


def test_a_stopping_server_lets_a_running_stream_finish(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, BLOCKED, graceful_timeout_seconds=20) as server:
        client = StreamClient(server.port, REQUEST | {"prompt": "hold after 2"})
        wait_until(lambda: server.num_running() == 1)
        server.process.terminate()
        wait_until(lambda: "Draining" in server.log)
        hold.unlink()
        assert client.receive_all()["type"] == "done"
        assert len(client.audio) == NUM_BYTES
        assert server.process.wait(10) == 0


def test_many_websockets_leave_no_errors(server: Server) -> None:
    def stream(number: int) -> str:
        prompt = ("solo cello", "fail after 3")[number % 2]
        return str(StreamClient(server.port, REQUEST | {"prompt": prompt}).receive_all()["type"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stream, range(40))) == ["done", "error"] * 20
    assert server.get("/ws/generate", headers=HANDSHAKE | {"Connection": "close"}).status_code == 400
    assert server.log.count("GET /ws/generate 200") >= 40
    assert "Traceback" not in server.log


def test_the_development_server_supports_websockets_too(tmp_path: Path) -> None:
    development = make_server("127.0.0.1", 0, fake_app(tmp_path, BlockEngine()), threaded=True)
    thread = threading.Thread(target=development.serve_forever)
    thread.start()
    try:
        client = StreamClient(development.server_port, REQUEST)
        assert client.receive_all()["type"] == "done"
        assert len(client.audio) == NUM_BYTES
        url = f"http://127.0.0.1:{development.server_port}/generate-stream"
        assert len(requests.post(url, json=REQUEST, timeout=TIMEOUT_SECONDS).content) == NUM_BYTES
    finally:
        development.shutdown()
        thread.join(TIMEOUT_SECONDS)
        development.server_close()
