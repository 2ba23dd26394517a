"""The Python client against a real server with a fake engine. Its synchronous form is generated from the other one."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import audiocraft_api_client as client_package
import pytest
import soundfile
from audiocraft_api_client import AsyncAudioCraft, AudioCraft, TerminalProgress
from audiocraft_api_client.models import SegmentFields, TaskWorkingResponse, UrlVariation

from support.http import melody_file
from support.keys import ENVIRONMENT_KEY
from support.live import playing
from support.served import Server

SECOND: dict[str, Any] = {"duration": 1}
STREAM_BYTES = 44 + 2 * 2 * 32_000


@pytest.fixture
def client(server: Server) -> Iterator[AudioCraft]:
    with AudioCraft(server.url, ENVIRONMENT_KEY) as client:
        yield client


def test_it_generates_downloads_and_saves(client: AudioCraft, tmp_path: Path) -> None:
    result = client.generate(
        "solo cello", model_size="medium", duration=1, top_k=7, seed=3, output_format="ogg", negative_prompt="drums"
    )
    assert result.recipe is not None
    recipe = result.recipe
    assert (recipe.model, recipe.top_k, recipe.seed, recipe.negative_prompt) == ("medium", 7, 3, "drums")
    client.save(result, tmp_path / "cello.ogg")
    assert soundfile.info(tmp_path / "cello.ogg").duration == pytest.approx(1)
    assert client.download(result) == client.download(result.audio_url) == (tmp_path / "cello.ogg").read_bytes()
    assert client.url_of(result.audio_url) == client.url_of(result)
    assert [path.name for path in tmp_path.iterdir()] == ["cello.ogg"]
    with AudioCraft("http://example.org/music/") as behind_a_proxy:
        assert behind_a_proxy.url_of(result) == f"http://example.org/music{result.audio_url}"


def test_segments_replace_the_prompt(client: AudioCraft) -> None:
    segments: list[SegmentFields] = [
        {"prompt": "piano", "duration": 0.5, "negative_prompt": "drums"},
        {"prompt": "choir", "duration": 0.5},
    ]
    results = [client.generate(segments=segments), client.tasks.run(segments=segments, poll_seconds=0.02).result]
    for result in results:
        assert result.recipe is not None
        assert result.recipe.segments is not None
        assert [part.model_dump(exclude_none=True) for part in result.recipe.segments] == segments
    with client.stream(segments=segments) as stream:
        assert stream.duration == 1
    with pytest.raises(client_package.InvalidRequestError, match="prompt"):
        client.generate(duration=1)


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_a_melody_may_be_a_path_bytes_or_a_file(client: AudioCraft, tmp_path: Path, kind: str) -> None:
    content = melody_file().read()
    (tmp_path / "melody.wav").write_bytes(content)
    melody = {"path": str(tmp_path / "melody.wav"), "bytes": content, "file": io.BytesIO(content)}[kind]
    result = client.generate("string quartet", melody=melody, duration=1)
    assert result.recipe is not None
    assert result.recipe.melody is not None


def test_a_melody_may_be_notes(client: AudioCraft) -> None:
    result = client.generate("string quartet", notes="C4:1 E4:1", bpm=90, duration=1)
    task = client.tasks.run("string quartet", notes="C4:1 E4:1", bpm=90, duration=1, poll_seconds=0.02)
    uploaded = client.generate_continuation(
        "string quartet", audio=melody_file(), notes="C4:1 E4:1", model_size="medium", duration=1
    )
    for recipe in (result.recipe, task.result.recipe, uploaded.recipe):
        assert (recipe.notes, recipe.melody) == ("C4:1 E4:1", None)
    with pytest.raises(client_package.InvalidRequestError, match="note 1 is 'H4:1'"):
        client.generate("string quartet", notes="H4:1")


def test_a_recording_is_continued(client: AudioCraft) -> None:
    fields: dict[str, Any] = {"duration": 1, "start": 0.25, "include_input": False}
    done = client.tasks.run_continuation("solo cello", audio=melody_file(), poll_seconds=0.02, **fields)
    melody = melody_file().read()
    whole = client.generate_continuation(
        "solo cello", audio=melody_file().read(), melody=melody, model_size="medium", duration=1
    )
    for result, seconds in ((done.result, 1.0), (whole, 2.0)):
        assert result.recipe is not None
        assert (result.recipe.end, result.duration) == (1.0, seconds)
    assert done.result.recipe is not None
    assert (done.result.recipe.start, done.result.recipe.include_input) == (0.26, False)
    assert whole.recipe is not None
    assert whole.recipe.melody is not None


def test_results_and_tasks_on_the_server_are_continued(client: AudioCraft) -> None:
    first = client.generate("solo cello", duration=1)
    task = client.tasks.run("solo cello", **SECOND, poll_seconds=0.02, continue_from={"audio_url": first.audio_url})
    whole = client.generate("solo cello", duration=1, continue_from={"task_id": task.task_id, "start": 0.5})
    assert (task.result.duration, whole.duration) == (2.0, 2.5)
    with client.stream("solo cello", duration=1, continue_from={"audio_url": whole.audio_url}) as stream:
        assert stream.duration == 3.5


def test_variations_have_audio_of_their_own(client: AudioCraft) -> None:
    result = client.generate("solo cello", duration=1, n=2, seed=3)
    assert result.variations is not None
    seeds = []
    for variation in result.variations:
        assert isinstance(variation, UrlVariation)
        assert client.download(variation)[:4] == b"RIFF"
        seeds.append(variation.seed)
    assert seeds == [3, 4]


def test_a_stream_is_iterated_read_or_saved(client: AudioCraft, tmp_path: Path) -> None:
    with client.stream("solo cello", duration=1, seed=5) as stream:
        assert (stream.seed, stream.sample_rate, stream.duration) == (5, 32_000, 1)
        assert sum(len(chunk) for chunk in stream) == STREAM_BYTES
    with client.stream("solo cello", duration=1) as stream:
        assert len(stream.read()) == STREAM_BYTES
    with client.stream("solo cello", duration=1) as stream:
        stream.save(tmp_path / "stream.wav")
    assert (tmp_path / "stream.wav").stat().st_size == STREAM_BYTES


def test_a_stream_that_fails_leaves_no_file(client: AudioCraft, tmp_path: Path) -> None:
    with client.stream("fail after 3", duration=1) as stream, pytest.raises(client_package.ConnectionFailedError):
        stream.save(tmp_path / "stream.wav")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(client_package.GenerationFailedError), client.stream("fail after 0", duration=1):
        pass


def test_a_task_reports_progress_and_completes(client: AudioCraft) -> None:
    seen: list[str] = []
    done = client.tasks.run(
        "solo cello", **SECOND, poll_seconds=0.02, on_progress=lambda task: seen.append(task.status)
    )
    assert seen[-1] == "completed"
    assert client.download(done)[:4] == b"RIFF"
    assert client.tasks.get(done.task_id) == done
    page = client.tasks.list(limit=1)
    assert page.tasks == [done]


def test_a_failed_task_raises_its_error(client: AudioCraft) -> None:
    with pytest.raises(client_package.GenerationFailedError) as caught:
        client.tasks.run("fail after 0", **SECOND, poll_seconds=0.02)
    assert caught.value.code == "generation_failed"


@pytest.mark.usefixtures("hold")
def test_an_interruption_cancels_the_task(client: AudioCraft) -> None:
    seen: list[str] = []

    def interrupt(task: Any) -> None:
        seen.append(task.task_id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.tasks.run("hold after 0", **SECOND, on_progress=interrupt)
    with pytest.raises(client_package.CanceledError):
        client.tasks.wait(seen[0], poll_seconds=0.02)


@pytest.mark.usefixtures("hold")
def test_events_follow_a_task_to_its_end(client: AudioCraft) -> None:
    task_id = client.tasks.submit("hold after 0", **SECOND).task_id
    statuses = []
    for task in client.tasks.events(task_id):
        statuses.append(task.status)
        if len(statuses) == 1:
            client.tasks.cancel(task_id)
    assert statuses[-1] == "canceled"
    assert list(client.tasks.events(task_id))[-1].status == "canceled"


def test_one_idempotency_key_makes_one_task(client: AudioCraft, tmp_path: Path) -> None:
    key = tmp_path.name
    submitted = [client.tasks.submit("solo cello", idempotency_key=key, **SECOND).task_id for _ in range(2)]
    assert submitted[0] == submitted[1]
    with pytest.raises(client_package.IdempotencyConflictError):
        client.tasks.submit("another", idempotency_key=key, **SECOND)


def test_errors_name_the_fields(client: AudioCraft) -> None:
    with pytest.raises(client_package.InvalidRequestError) as caught:
        client.generate("solo cello", duration=99, tempo=1)  # type: ignore[call-arg]
    error = caught.value
    assert (error.code, error.status, set(error.errors)) == ("invalid_request", 400, {"duration", "tempo"})
    assert error.request_id
    with pytest.raises(client_package.NotFoundError):
        client.tasks.get("a/b?c")
    with pytest.raises(client_package.PromptRefusedError) as refused:
        client.generate("sad piano, kill yourself, 90 bpm", **SECOND)
    assert refused.value.category
    assert refused.value.suggestion


def test_the_key_and_the_url_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with AudioCraft(server.url) as client, pytest.raises(client_package.UnauthorizedError):
        client.models()
    monkeypatch.setenv("AUDIOCRAFT_URL", server.url)
    monkeypatch.setenv("AUDIOCRAFT_KEY", ENVIRONMENT_KEY)
    with AudioCraft() as client:
        assert "small" in {model.name for model in client.models()}
        assert client.health().status == "healthy"


def test_models_are_loaded_and_unloaded_by_administrators(server: Server) -> None:
    with AudioCraft(server.url, ENVIRONMENT_KEY) as client:
        for act in (client.load_model, client.unload_model):
            with pytest.raises(client_package.ForbiddenError, match="scope: admin"):
                act("demo")


def test_models_are_named_in_the_routes(tmp_path: Path) -> None:
    with playing(tmp_path) as (port, _, _), AudioCraft(f"http://127.0.0.1:{port}") as client:
        assert client.load_model("facebook/musicgen-small").name == "small"
        assert client.unload_model("demo", when_busy="refuse").state == "unloaded"


def test_the_asynchronous_client_does_the_same(server: Server, tmp_path: Path) -> None:
    async def use() -> None:
        async with AsyncAudioCraft(server.url, ENVIRONMENT_KEY) as client:
            result, task = await asyncio.gather(
                client.generate("solo cello", duration=1), client.tasks.run("solo cello", duration=1, poll_seconds=0.02)
            )
            for audio in (result, task):
                assert (await client.download(audio)).startswith(b"RIFF")
            async with client.stream("solo cello", duration=1) as stream:
                assert sum([len(chunk) async for chunk in stream]) == STREAM_BYTES
            async with client.stream("solo cello", duration=1, output_format="mp3") as stream:
                await stream.save(tmp_path / "a.mp3")
            assert [event.status async for event in client.tasks.events(task.task_id)] == ["completed"]
            with pytest.raises(client_package.InvalidRequestError):
                await client.generate("")

    asyncio.run(use())
    assert soundfile.info(tmp_path / "a.mp3").duration == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("hold")
def test_a_canceled_coroutine_cancels_its_task(server: Server) -> None:
    async def use() -> str:
        async with AsyncAudioCraft(server.url, ENVIRONMENT_KEY) as client:
            started = asyncio.Event()
            running = asyncio.create_task(
                client.tasks.run("hold after 0", duration=1, on_progress=lambda _task: started.set())
            )
            await started.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            task_id = (await client.tasks.list(limit=1)).tasks[0].task_id
            return [task.status async for task in client.tasks.events(task_id)][-1]

    assert asyncio.run(use()) == "canceled"


class FlakyServer:
    """Gives prepared answers, and counts the requests. An answer is a status, headers and a body; None hangs up."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], str] | None] = []
        self.keys: list[str | None] = []
        flaky = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                flaky.keys.append(self.headers["Idempotency-Key"])
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                answer = flaky.answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *_arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


def full(retry_after: str) -> tuple[int, dict[str, str], str]:
    return (503, {"Retry-After": retry_after}, '{"error": "Full.", "code": "queue_full"}')


MODELS = (200, {}, '{"models": []}')


class TestRetries:
    @pytest.fixture
    def flaky(self) -> Iterator[FlakyServer]:
        flaky = FlakyServer()
        Thread(target=flaky.http.serve_forever, daemon=True).start()
        yield flaky
        flaky.http.shutdown()
        flaky.http.server_close()

    @pytest.fixture
    def client(self, flaky: FlakyServer) -> Iterator[AudioCraft]:
        with AudioCraft(flaky.url) as client:
            yield client

    def test_a_get_is_repeated(self, client: AudioCraft, flaky: FlakyServer) -> None:
        flaky.answers = [full("0"), None, MODELS]
        assert client.models() == []
        assert len(flaky.keys) == 3

    def test_the_client_gives_up_after_the_last_attempt(self, client: AudioCraft, flaky: FlakyServer) -> None:
        flaky.answers = [full("0")] * 3
        with pytest.raises(client_package.UnavailableError) as caught:
            client.models()
        assert (caught.value.code, caught.value.retry_after, len(flaky.keys)) == ("queue_full", 0, 3)

    def test_a_long_retry_after_is_not_waited_for(self, client: AudioCraft, flaky: FlakyServer) -> None:
        flaky.answers = [full("86400")]
        with pytest.raises(client_package.UnavailableError):
            client.models()
        assert len(flaky.keys) == 1

    @pytest.mark.parametrize("answer", [full("0"), None])
    def test_a_post_without_an_idempotency_key_is_not_repeated(
        self, client: AudioCraft, flaky: FlakyServer, answer: tuple[int, dict[str, str], str] | None
    ) -> None:
        flaky.answers = [answer, answer]
        with pytest.raises(client_package.AudioCraftError):
            client.generate("solo cello")
        with pytest.raises(client_package.AudioCraftError), client.stream("solo cello"):
            pass
        assert flaky.keys == [None, None]

    def test_a_submission_is_repeated_with_its_key(self, client: AudioCraft, flaky: FlakyServer) -> None:
        accepted = '{"task_id": "1", "status": "processing", "seed": 1, "events_url": "/", "request_id": "a"}'
        flaky.answers = [None, full("0"), (202, {}, accepted)]
        assert client.tasks.submit("solo cello").task_id == "1"
        assert len(flaky.keys) == 3
        assert len(set(flaky.keys)) == 1
        assert flaky.keys[0]

    def test_a_page_of_a_proxy_is_an_error(self, client: AudioCraft, flaky: FlakyServer) -> None:
        flaky.answers = [(500, {}, "<html>Not JSON</html>")]
        with pytest.raises(client_package.AudioCraftError) as caught:
            client.models()
        assert (caught.value.status, caught.value.code) == (500, "internal_error")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def working(**fields: Any) -> TaskWorkingResponse:
    known = {"task_id": "1", "state": "processing", "model": "small", "seed": 1, "attempts": 1}
    known |= {"created_at": "2026-11-28T11:00:00Z", "started_at": None, "finished_at": None, "cancel_requested": False}
    return TaskWorkingResponse.model_validate(known | {"queue_position": None, "eta_seconds": None} | fields)


def test_progress_is_drawn_on_a_terminal_only() -> None:
    for file, expected in ((Terminal(), ["position 2", " 50%, 3 s left"]), (io.StringIO(), [])):
        with TerminalProgress(file) as progress:
            progress(working(current=0, total=0, queue_position=2))
            progress(working(current=50, total=100, eta_seconds=3.2))
        for text in expected:
            assert text in file.getvalue()
        assert bool(file.getvalue()) == bool(expected)


def test_playing_without_sounddevice_says_what_to_install() -> None:
    with pytest.raises(RuntimeError, match="pip install sounddevice soundfile"):
        client_package.play(b"")
