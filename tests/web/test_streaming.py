"""Streaming of audio during generation: the encoders, the route, and a real server with clients of all kinds."""

from __future__ import annotations

import io
import itertools
import os
import socket
import stat
import subprocess
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import soundfile

from audiocraft_api.audio import convert
from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.audio.stream_encoding import FfmpegEncoder, StreamEncoder, open_encoder
from audiocraft_api.core.errors import ConversionFailed, ModelUnavailable
from audiocraft_api.web.services import services_of
from support.http import assert_error, fake_app
from support.served import Server, serve, wait_until
from support.streamed import BlockEngine

SAMPLE_RATE = 32_000
BLOCKED = "support.streamed:app"
REQUEST = {"prompt": "solo cello", "duration": 1}
DEMO = {"prompt": "warm analog synth arpeggio", "model_size": "demo", "duration": 3, "seed": 7}
ENCODER_DELAY = {"m4a": 1024}  # samples that the header of a file tells decoders to skip


def decode(audio: bytes) -> np.ndarray[Any, Any]:
    """Decode mono or stereo audio of any format with ffmpeg to [T, 2]."""
    command = [convert.ffmpeg_executable(), "-v", "error", "-i", "pipe:0", "-ac", "2", "-f", "f32le", "pipe:1"]
    run = subprocess.run(command, input=audio, capture_output=True, check=True, timeout=30)
    return np.frombuffer(run.stdout, np.float32).reshape(-1, 2)


def assert_same_sound(streamed: bytes, file: bytes, output_format: str) -> None:
    stream, whole = decode(streamed), decode(file)
    stream = stream[ENCODER_DELAY.get(output_format, 0) :]
    if output_format in ("mp3", "m4a"):  # the decoder may drop silence at the end
        assert abs(len(stream) - len(whole)) < 2 * 1152
    else:
        assert len(stream) == len(whole)
    length = min(len(stream), len(whole))
    np.testing.assert_array_equal(stream[:length], whole[:length])


# --- the encoders


def music(num_channels: int, seconds: float = 3.01) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a tone of changing volume with noise [C, T], partly beyond full scale."""
    generator = np.random.default_rng(1)
    length = int(seconds * SAMPLE_RATE)
    envelope = np.repeat(generator.random(length // 800 + 1), 800)[:length]
    tone = np.sin(np.arange(length) * 0.05)
    noise = generator.standard_normal((num_channels, length))
    return (1.2 * envelope * tone + 0.05 * noise).astype(np.float32)


def stream(waveform: np.ndarray[Any, Any], output_format: str) -> bytes:
    encoder = open_encoder(output_format, len(waveform), SAMPLE_RATE, waveform.shape[1], 20)
    edges = [0, 4_700, 12_380, *range(28_380, waveform.shape[1], 16_000), waveform.shape[1]]
    try:
        parts = [encoder.feed(waveform[:, start:end]) for start, end in itertools.pairwise(edges)]
        return b"".join([*parts, encoder.finish()])
    finally:
        encoder.close()


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("output_format", list(FORMATS))
def test_a_stream_decodes_to_the_samples_of_the_file(output_format: str, num_channels: int) -> None:
    waveform = music(num_channels)
    file = convert.encode(waveform, SAMPLE_RATE, output_format)
    assert_same_sound(stream(waveform, output_format), file, output_format)


@pytest.mark.parametrize("output_format", ["wav", "wav24", "wav32f"])
def test_a_wav_stream_has_the_sample_bytes_of_the_file(output_format: str) -> None:
    waveform = music(2)
    streamed, file = stream(waveform, output_format), convert.encode(waveform, SAMPLE_RATE, output_format)
    start = streamed.index(b"data") + 8
    begin = file.index(b"data") + 8
    length = int.from_bytes(file[begin - 4 : begin], "little")
    assert streamed[start:] == file[begin : begin + length]


@pytest.mark.parametrize("output_format", ["wav", "wav24", "wav32f"])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_header_of_a_wav_stream_states_its_sizes(output_format: str, num_channels: int) -> None:
    waveform = music(num_channels)[:, :9_999]  # with 24 bits and one channel an odd number of bytes
    streamed = stream(waveform, output_format)
    assert int.from_bytes(streamed[4:8], "little") == len(streamed) - 8
    start = streamed.index(b"data") + 8
    sample_bytes = {"wav": 2, "wav24": 3, "wav32f": 4}[output_format]
    assert int.from_bytes(streamed[start - 4 : start], "little") == 9_999 * num_channels * sample_bytes
    assert len(streamed) % 2 == 0
    assert soundfile.info(io.BytesIO(streamed)).frames == 9_999


@pytest.mark.parametrize("output_format", ["wav", "wav24", "wav32f", "flac", "ogg", "mp3", "opus"])
def test_libsndfile_reads_a_saved_stream(output_format: str) -> None:
    waveform = music(2)
    samples, sample_rate = soundfile.read(io.BytesIO(stream(waveform, output_format)))
    assert sample_rate == (FORMATS[output_format].sample_rate or SAMPLE_RATE)
    assert len(samples) == -(-waveform.shape[1] * sample_rate // SAMPLE_RATE)


def test_an_mp3_stream_has_the_frames_of_the_file() -> None:
    waveform = music(1)
    streamed, file = stream(waveform, "mp3"), convert.encode(waveform, SAMPLE_RATE, "mp3")
    begin = streamed.index(b"\xff\xfb", 4)  # after the first frame, which contains the length
    assert 150 < begin < 300
    assert file.endswith(streamed[begin:])


@pytest.mark.parametrize("output_format", list(FORMATS))
def test_samples_that_are_not_numbers_are_refused(output_format: str) -> None:
    encoder = open_encoder(output_format, 1, SAMPLE_RATE, 6400, 20)
    try:
        with pytest.raises(ConversionFailed):
            encoder.feed(np.full((1, 6400), np.nan, np.float32))
    finally:
        encoder.close()


def feed_all(encoder: StreamEncoder, block: np.ndarray[Any, Any], times: int) -> bytes:
    return b"".join([*[encoder.feed(block) for _ in range(times)], encoder.finish()])


def replace_ffmpeg(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace ffmpeg with a shell script."""
    path = directory / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(convert, "ffmpeg_executable", lambda: str(path))


@pytest.mark.timing
@pytest.mark.parametrize(
    "script",
    ["exit 1", "echo wrong >&2; head -c 100000 >/dev/null; exit 1", "exec sleep 60", "cat >/dev/null; exit 3"],
    ids=["exits immediately", "exits in the middle", "hangs", "fails at the end"],
)
def test_an_ffmpeg_that_fails_or_hangs_is_a_failed_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    replace_ffmpeg(tmp_path, monkeypatch, script)
    encoder = open_encoder("mp3", 1, SAMPLE_RATE, 10 * SAMPLE_RATE, 0.5)
    started = time.monotonic()
    with pytest.raises(ConversionFailed):
        feed_all(encoder, music(1, 1.0), 10)
    encoder.close()
    encoder.close()
    assert time.monotonic() - started < 5
    assert isinstance(encoder, FfmpegEncoder)
    assert encoder._process.poll() is not None


def test_an_ffmpeg_that_writes_more_than_it_reads_does_not_deadlock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_ffmpeg(tmp_path, monkeypatch, "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; cat")
    waveform = music(1, 10.0)
    encoder = open_encoder("mp3", 1, SAMPLE_RATE, waveform.shape[1], 10)
    encoded = encoder.feed(waveform) + encoder.finish()
    encoder.close()
    assert len(encoded) == 3_000_000 + 2 * waveform.shape[1]


@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("length", [640, 33_408, 33_409, 34_560])
def test_an_mp3_stream_of_any_rate_and_length_decodes_to_the_samples_of_the_file(sample_rate: int, length: int) -> None:
    waveform = music(1)[:, :length]
    encoder = open_encoder("mp3", 1, sample_rate, length, 20)
    streamed = encoder.feed(waveform) + encoder.finish()
    encoder.close()
    whole = decode(convert.encode(waveform, sample_rate, "mp3"))[:length]
    stream = decode(streamed)
    if sample_rate >= 32_000:
        np.testing.assert_array_equal(stream, whole)
    else:  # not MPEG-1: the stream cannot declare the delay of the encoder
        assert len(stream) > length


# --- the route: errors before the first byte


def test_errors_before_the_first_byte_have_their_own_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BlockEngine()
    app = fake_app(tmp_path, engine)
    client = app.test_client()

    def post(**fields: Any) -> Any:
        return client.post("/generate-stream", json=REQUEST | fields)

    assert_error(post(duration=0), 400, "invalid_request", "duration")
    assert_error(post(return_type="url"), 400, "invalid_request", "return_type")
    assert_error(post(model_size="enormous"), 400, "invalid_request", "model_size")
    assert_error(post(output_format="midi"), 400, "invalid_request", "output_format")
    assert_error(post(prompt="fail after 0"), 500, "generation_failed")
    monkeypatch.setattr(convert, "ffmpeg_executable", lambda: str(tmp_path / "absent"))
    assert_error(post(output_format="opus"), 500, "conversion_failed")
    engine.failure = ModelUnavailable("The model does not load.")
    assert_error(post(), 503, "model_unavailable")
    engine.capacity = 0
    refused = post()
    assert_error(refused, 503, "queue_full")
    assert refused.headers["Retry-After"] == "7"
    assert services_of(app).stream_slots.num_open == 0


def test_a_missed_deadline_is_504_before_the_first_byte(tmp_path: Path) -> None:
    gate = threading.Event()
    app = fake_app(tmp_path, BlockEngine(gate), request_deadline_seconds=0.2)
    response = app.test_client().post("/generate-stream", json=REQUEST | {"prompt": "hold after 0"})
    assert_error(response, 504, "deadline_exceeded")
    assert services_of(app).stream_slots.num_open == 0


# --- a real server with the demo model


@pytest.fixture(scope="module")
def demo_server(demo_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), checkpoints_dir=demo_checkpoints, offline=True) as server:
        server.post("/generate", json=DEMO)  # loads the model
        yield server


@pytest.mark.parametrize("output_format", ["wav", "mp3", "opus", "ogg", "flac", "m4a"])
def test_a_stream_matches_the_file_of_the_same_seed(demo_server: Server, output_format: str) -> None:
    fields = DEMO | {"output_format": output_format}
    body = demo_server.post("/generate", json=fields).json()
    file = demo_server.get(body["audio_url"]).content
    response = demo_server.post("/generate-stream", json=fields, headers={"X-Request-ID": "mine", "Origin": "http://a"})
    assert response.status_code == 200
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.headers["Content-Type"] == FORMATS[output_format].media_type
    assert response.headers["X-Request-ID"] == "mine"
    for name in ("seed", "model", "revision", "sample_rate", "duration"):
        header = f"X-Audio-{name.title().replace('_', '-')}"
        assert response.headers[header] == f"{body[name]:g}" if name == "duration" else str(body[name])
        assert header in response.headers["Access-Control-Expose-Headers"]
    assert_same_sound(response.content, file, output_format)
    if output_format == "wav":
        with wave.open(io.BytesIO(file)) as whole:
            assert response.content[44:] == whole.readframes(whole.getnframes())


def test_the_first_audio_arrives_before_generation_ends_and_within_a_second(demo_server: Server) -> None:
    firsts, wholes = [], []
    for _ in range(3):
        started = time.monotonic()
        with demo_server.post("/generate-stream", json=DEMO | {"duration": 10}, stream=True) as response:
            chunks = response.iter_content(None)
            assert len(next(chunks)) > 44
            firsts.append(time.monotonic() - started)
            num_chunks = 1 + sum(1 for _ in chunks)
            wholes.append(time.monotonic() - started)
        assert num_chunks > 5
    print(f"first audio after {min(firsts):.3f} s, all 10 s of it after {min(wholes):.3f} s")
    assert min(firsts) < 1
    assert min(firsts) < min(wholes) / 2


def test_concurrent_streams_each_get_their_own_audio(demo_server: Server) -> None:
    def listen(seed: int) -> bytes:
        return demo_server.post("/generate-stream", json=DEMO | {"seed": seed, "duration": 2}).content

    alone = [listen(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(listen, range(6))) == alone
    assert len(set(alone)) == 6


# --- a real server with clients that disconnect, stall or fail


def children_of(server: Server) -> list[psutil.Process]:
    """Return the child processes of the server's worker."""
    (worker,) = psutil.Process(server.process.pid).children()
    return worker.children()


def test_an_error_after_the_first_byte_aborts_the_body(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED) as server:
        with server.post("/generate-stream", json=REQUEST | {"prompt": "fail after 3"}, stream=True) as response:
            assert response.status_code == 200
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                response.content  # noqa: B018
        wait_until(lambda: "Aborted a stream after" in server.log)
        assert "Traceback" not in server.log
        assert server.post("/generate-stream", json=REQUEST).status_code == 200


@pytest.mark.timing
@pytest.mark.parametrize("output_format", ["wav", "mp3"])
@pytest.mark.parametrize("prompt", ["hold after 0", "hold after 4"])
def test_a_client_that_disconnects_stops_its_generation_and_its_encoder(
    tmp_path: Path, hold: Path, prompt: str, output_format: str
) -> None:
    with serve(tmp_path, BLOCKED) as server:
        fields = REQUEST | {"prompt": prompt, "output_format": output_format}
        body = requests.Request("POST", server.url, json=fields).prepare().body
        assert isinstance(body, bytes)
        connection = server.connect()
        head = f"POST /generate-stream HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        if prompt == "hold after 4":
            assert connection.recv(12) == b"HTTP/1.1 200"
            assert bool(children_of(server)) == (output_format == "mp3")
        wait_until(lambda: server.num_running() == 1)
        assert hold.exists()
        connection.close()
        left = time.monotonic()
        wait_until(lambda: server.num_running() == 0)
        wait_until(lambda: not children_of(server))
        assert time.monotonic() - left < 1.5


def test_a_client_that_does_not_read_loses_its_thread_and_delays_no_other_request(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, threads=4, socket_timeout_seconds=1) as server:
        connection = open_stalled_client(server)
        wait_until(lambda: server.num_running() == 0)  # the generation ends even if the client does not read
        refused = server.post("/generate-stream", json=REQUEST)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
        assert server.get("/health").status_code == 200
        wait_until(lambda: server.post("/generate-stream", json=REQUEST).status_code == 200)
        connection.close()


def open_stalled_client(server: Server) -> socket.socket:
    """Request 8 MB of audio and read only the status line."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    body = b'{"prompt": "solo cello", "duration": 30, "output_format": "wav32f"}'
    head = f"POST /generate-stream HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


@pytest.mark.timing
def test_ten_streams_over_the_limit_are_refused_and_health_still_responds(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, BLOCKED) as server, ThreadPoolExecutor(26) as pool:
        cap = 16  # a quarter of the threads
        held = REQUEST | {"prompt": "hold after 2"}
        futures = [pool.submit(server.post, "/generate-stream", json=held, stream=True) for _ in range(cap + 10)]
        responses = [future.result(20) for future in futures]
        refused = [response for response in responses if response.status_code == 503]
        assert len(refused) == 10
        assert {response.json()["code"] for response in refused} == {"too_many_streams"}
        assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
        started = time.monotonic()
        assert server.get("/health", timeout=2).json()["queue"]["running"] == cap
        assert time.monotonic() - started < 1
        hold.unlink()
        playing = [response for response in responses if response.status_code == 200]
        assert {len(response.content) for response in playing} == {44 + 4 * SAMPLE_RATE}
        assert server.post("/generate-stream", json=REQUEST).status_code == 200


def test_a_stopping_server_lets_streams_finish(tmp_path: Path, hold: Path) -> None:
    with serve(tmp_path, BLOCKED, graceful_timeout_seconds=20) as server:
        with server.post("/generate-stream", json=REQUEST | {"prompt": "hold after 2"}, stream=True) as response:
            server.process.terminate()
            wait_until(lambda: "Draining" in server.log)
            hold.unlink()
            assert len(response.content) == 44 + 4 * SAMPLE_RATE
        assert server.process.wait(10) == 0


@pytest.mark.timing
def test_a_client_that_does_not_read_does_not_delay_a_shutdown(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED, graceful_timeout_seconds=20) as server:
        connection = open_stalled_client(server)
        wait_until(lambda: server.num_running() == 0)
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 8
        connection.close()


def test_many_streams_leak_no_files_or_processes(tmp_path: Path) -> None:
    with serve(tmp_path, BLOCKED) as server:
        formats = ["wav", "mp3", "opus", "flac"]

        def listen(number: int) -> int:
            prompt = ("solo cello", "fail after 3")[number % 2]
            fields = REQUEST | {"prompt": prompt, "output_format": formats[number % 4]}
            try:
                return server.post("/generate-stream", json=fields).status_code
            except requests.exceptions.ChunkedEncodingError:
                return 0

        def open_files() -> int:
            return len(os.listdir(f"/proc/{worker.pid}/fd"))

        (worker,) = psutil.Process(server.process.pid).children()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(listen, range(16)))
            before = open_files()
            list(pool.map(listen, range(48)))
        wait_until(lambda: open_files() <= before + 4)  # keep-alive connections
        assert not children_of(server)
