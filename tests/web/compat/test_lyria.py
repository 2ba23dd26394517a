"""Google's unmodified Python client plays Lyria's music on this server, over TLS as it insists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from flask import Flask
from google import genai
from google.genai import errors, types
from google.genai.live_music import AsyncMusicSession
from simple_websocket import Client, ConnectionClosed

from audiocraft_api.audio.resampled_pcm import ResampledPcm
from audiocraft_api.web.compat.lyria_messages import MusicGenerationConfig
from audiocraft_api.web.services import services_of
from support.documents import code_blocks, section
from support.fakes import SAMPLE_RATE, block
from support.http import fake_app
from support.keys import ENVIRONMENT_KEY, create_key
from support.live import LiveEngine, playing
from support.nginx import tls_proxy
from support.served import Server, wait_until

TIMEOUT_SECONDS = 60.0
BYTES_PER_FRAME = 48_000 * 4 // 50
ROUTE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateMusic"
JAZZ, ROCK, REFUSED = "jazz piano", "rock guitar", "sad piano, kill yourself"
pytestmark = pytest.mark.filterwarnings("ignore:Realtime music generation is experimental")


class Player:
    """Collects what a session of the client receives."""

    def __init__(self, session: AsyncMusicSession) -> None:
        self.session = session
        self._stream = session.receive()
        self.audio = b""
        self.sources: list[types.LiveMusicSourceMetadata] = []
        self.filtered: list[types.LiveMusicFilteredPrompt] = []

    async def receive(self) -> None:
        """Receive a message."""
        message = await asyncio.wait_for(anext(self._stream), TIMEOUT_SECONDS)
        for chunk in message.server_content.audio_chunks if message.server_content else []:
            self.audio += chunk.data
            self.sources.append(chunk.source_metadata)
        if message.filtered_prompt:
            self.filtered.append(message.filtered_prompt)

    async def receive_rest(self) -> None:
        """Receive until the connection is closed. A client that stops reading closes it only after ten seconds."""
        with suppress(errors.APIError, StopAsyncIteration):
            while True:
                await self.receive()

    async def receive_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.receive()

    async def hear(self, num_frames: int) -> None:
        """Receive until there is this much more audio."""
        end = len(self.audio) + num_frames * BYTES_PER_FRAME
        await self.receive_until(lambda: len(self.audio) >= end)

    async def prompts(self, **weights: float) -> None:
        prompts = [types.WeightedPrompt(text=text, weight=weight) for text, weight in weights.items()]
        await self.session.set_weighted_prompts(prompts=prompts)

    async def config(self, **fields: Any) -> None:
        await self.session.set_music_generation_config(config=types.LiveMusicGenerationConfig(**fields))

    async def play(self, **weights: float) -> None:
        await self.prompts(**weights)
        await self.session.play()

    async def refuse_a_prompt(self) -> None:
        """Send a refused prompt, and receive until it is answered: everything before it was handled then."""
        num_filtered = len(self.filtered)
        await self.prompts(**{REFUSED: 1.0})
        await self.receive_until(lambda: len(self.filtered) > num_filtered)


@asynccontextmanager
async def connected(url: str, model: str = "models/lyria-realtime-exp", key: str = "none") -> AsyncIterator[Player]:
    client = genai.Client(api_key=key, http_options={"base_url": url, "api_version": "v1beta"})
    async with client.aio.live.music.connect(model=model) as session:
        player = Player(session)
        try:
            yield player
        finally:
            rest = asyncio.create_task(player.receive_rest())
    await rest


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")


@pytest.fixture
def secure_url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a proxy in front of a gunicorn that needs a key."""
    with tls_proxy(tmp_path, server.port) as (url, authority):
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        yield url


class Played:
    """An app in this process behind the proxy, and its engine."""

    def __init__(self, url: str, port: int, engine: LiveEngine, app: Flask) -> None:
        self.url, self.port, self.engine, self.app = url, port, engine, app

    @property
    def changes(self) -> list[tuple[list[tuple[str, float]], float, int]]:
        """The prompts, the temperature and `top_k` of each change of the last session."""
        found = [change.controls for change in self.engine.live[-1].changes]
        return [([tuple(prompt) for prompt in state.prompts], state.temperature, state.top_k) for state in found]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    with ExitStack() as stack:
        settings = {"compat_model": "demo", "live_messages_per_second": 100}
        port, engine, app = stack.enter_context(playing(tmp_path, **settings))
        url, authority = stack.enter_context(tls_proxy(tmp_path, port))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        yield Played(url, port, engine, app)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_SECONDS))


def assert_is_the_tone(audio: bytes) -> None:
    """The fake engine plays a tone in stereo: it must come at 48 kHz without a gap."""
    num_frames = len(audio) // BYTES_PER_FRAME + 2
    expected = ResampledPcm(2, SAMPLE_RATE, 48_000).feed(block(0, num_frames + 2))
    np.testing.assert_array_equal(np.frombuffer(audio, "<i2"), np.frombuffer(expected[: len(audio)], "<i2"))


def test_music_arrives_as_48_khz_in_stereo_without_a_gap(secure_url: str) -> None:
    async def listen() -> None:
        async with connected(secure_url, key=ENVIRONMENT_KEY) as player:
            await player.config(bpm=90, temperature=1.1, scale=types.Scale.D_FLAT_MAJOR_B_FLAT_MINOR)
            await player.play(**{JAZZ: 1.0})
            await player.hear(60)
            assert_is_the_tone(player.audio)
            (source,) = {str(source) for source in player.sources}
            assert JAZZ in source
            assert "bpm=90" in source

    run(listen())


def test_a_wrong_key_is_refused(secure_url: str) -> None:
    async def listen() -> None:
        with pytest.raises(websockets.InvalidStatus) as raised:
            async with connected(secure_url, key="wrong"):
                pass
        assert raised.value.response.status_code == 401
        error = json.loads(raised.value.response.body)["error"]
        assert (error["code"], error["status"]) == (401, "UNAUTHENTICATED")

    run(listen())


def test_the_example_in_the_documentation_plays(secure_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOCRAFT_KEY", ENVIRONMENT_KEY)
    (example,) = code_blocks(section("docs/compatibility.md", "Lyria RealTime"), "python")
    shown = "https://music.example.com"
    assert shown in example
    exec(compile(example.replace(shown, secure_url), "Lyria RealTime", "exec"), {})
    audio = (tmp_path / "techno.pcm").read_bytes()
    assert len(audio) >= 48_000 * 4
    assert_is_the_tone(audio)


def test_weighted_prompts_and_the_config_change_what_plays(played: Played) -> None:
    async def listen() -> None:
        async with connected(played.url, "models/demo") as player:
            await player.play(**{JAZZ: 1.0})
            await player.hear(10)
            await player.prompts(**{JAZZ: 0.5, ROCK: 2.0, "drums": -1.0, "rain": 0.0})
            await player.config(bpm=120, scale="G_MAJOR_E_MINOR", temperature=3.0, top_k=40, guidance=4.0)
            await player.receive_until(lambda: str(player.sources[-1]).count("bpm=120"))
            weights = {prompt.text: prompt.weight for prompt in player.sources[-1].client_content.weighted_prompts}
            assert weights == {JAZZ: 0.5, ROCK: 2.0, "drums": -1.0}
            await player.config()
            await player.receive_until(lambda: player.sources[-1].music_generation_config.bpm is None)

    run(listen())
    words = ". bpm: 120. key: G major"
    blend = [(JAZZ, 0.5), (ROCK, 2.0), ("drums", -1.0)]
    spoken = [(JAZZ + words, 0.5), (ROCK + words, 2.0), ("drums", -1.0)]
    assert played.changes == [([(JAZZ, 1.0)], 1.0, 250), (blend, 1.0, 250), (spoken, 2.0, 40), (blend, 1.0, 250)]


def test_pause_holds_the_audio_and_play_goes_on_without_a_gap(played: Played) -> None:
    async def listen() -> None:
        async with connected(played.url) as player:
            await player.play(**{JAZZ: 1.0})
            await player.hear(10)
            await player.session.pause()
            await player.refuse_a_prompt()
            heard = len(player.audio)
            await player.refuse_a_prompt()
            assert len(player.audio) == heard
            await player.session.play()
            await player.hear(75)
            assert_is_the_tone(player.audio)

    run(listen())


def test_reset_context_begins_new_music(played: Played) -> None:
    async def listen() -> None:
        async with connected(played.url) as player:
            await player.play(**{JAZZ: 1.0})
            await player.hear(10)
            await player.session.reset_context()
            await player.refuse_a_prompt()

    run(listen())
    wait_until(lambda: [change.resets_context for change in played.engine.live[0].changes] == [False, True])


def test_play_after_stop_begins_another_session_with_the_same_prompts(played: Played, tmp_path: Path) -> None:
    async def listen() -> None:
        async with connected(played.url) as player:
            await player.play(**{JAZZ: 1.0})
            await player.hear(10)
            await player.prompts(**{ROCK: 1.0})
            await player.config(seed=7)
            await player.receive_until(lambda: player.sources[-1].music_generation_config.seed == 7)
            await player.session.stop()
            await player.session.play()
            player.audio = b""
            await asyncio.to_thread(wait_until, lambda: len(played.engine.live) == 2, TIMEOUT_SECONDS)
            await player.hear(20)

    run(listen())
    first, second = played.engine.live
    assert first.is_stopping
    assert second.params.seed == 7
    assert second.changes[0].controls.prompts[0].text == ROCK
    wait_until(lambda: len(list(tmp_path.rglob("*.json"))) == 2)  # both performances are kept


def test_a_refused_prompt_is_filtered_and_another_one_plays(played: Played) -> None:
    async def listen() -> None:
        async with connected(played.url) as player:
            await player.play(**{REFUSED: 1.0})
            await player.receive_until(lambda: player.filtered)
            assert player.filtered[0].text == REFUSED
            assert "prompt" in player.filtered[0].filtered_reason
            await player.prompts(**{JAZZ: 1.0})
            await player.hear(10)
            await player.refuse_a_prompt()
            await player.hear(10)

    run(listen())
    assert [change[0] for change in played.changes] == [[(JAZZ, 1.0)]]


def test_a_draining_server_ends_the_music_with_a_reason(played: Played) -> None:
    async def listen() -> None:
        async with connected(played.url) as player:
            await player.play(**{JAZZ: 1.0})
            await player.hear(10)
            services_of(played.app).draining.set()
            with pytest.raises(errors.APIError) as raised:
                await player.hear(10_000)
            assert raised.value.code == 1001
            assert "shutting down" in str(raised.value)

    run(listen())


def test_a_failing_connection_has_a_reason(played: Played) -> None:
    async def listen() -> None:
        for model, reason in (("models/gpt", "model"), ("models/demo-melody", "demo-melody")):
            with pytest.raises(websockets.ConnectionClosedError, match=reason) as raised:
                async with connected(played.url, model):
                    pass
            assert raised.value.rcvd.code == 1008
        async with connected(played.url):
            with pytest.raises(websockets.ConnectionClosedError, match="1 open live sessions") as raised:
                async with connected(played.url):
                    pass
            assert raised.value.rcvd.code == 1013

    run(listen())


class RawClient:
    """Speaks the contract word by word."""

    def __init__(self, port: int, query: str = "") -> None:
        self.ws = Client.connect(f"ws://127.0.0.1:{port}{ROUTE}{query}")
        self.send({"setup": {"model": "models/lyria-realtime-exp"}})

    def send(self, message: Any) -> None:
        self.ws.send(message if isinstance(message, str) else json.dumps(message))

    def receive(self) -> dict[str, Any]:
        """Return the next message that is not audio."""
        while True:
            message: dict[str, Any] = json.loads(self.ws.receive(timeout=TIMEOUT_SECONDS))
            if "serverContent" not in message:
                return message


@pytest.fixture(scope="module")
def raw_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    settings = {"live_max_sessions": 4, "live_max_sessions_per_key": 0, "compat_model": "demo"}
    with playing(tmp_path_factory.mktemp("raw"), **settings) as (port, _, _):
        yield port


def test_what_musicgen_cannot_do_is_warned_of_once(raw_port: int) -> None:
    client = RawClient(raw_port)
    assert client.receive() == {"setupComplete": {}}
    config = {"density": 0.5, "brightness": 1, "muteBass": True, "muteDrums": False, "musicGenerationMode": "QUALITY"}
    for _ in range(2):
        client.send({"musicGenerationConfig": config})
    client.send({"music_generation_config": {"only_bass_and_drums": True}})
    client.send({"playbackControl": "LOUDER"})
    prompts = [{"text": f"piano {number}", "weight": number} for number in range(1, 7)]
    client.send({"clientContent": {"weightedPrompts": prompts}})
    assert [client.receive() for _ in range(4)] == [
        {"warning": "This server ignores density, brightness, muteBass."},
        {"warning": "This server ignores onlyBassAndDrums."},
        {"warning": "playbackControl must be PLAY, PAUSE, STOP or RESET_CONTEXT."},
        {"warning": "This server blends 4 prompts, the heaviest ones."},
    ]
    client.ws.close()


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"playbackControl": "PLAY"}, "weightedPrompts"),
        ({"clientContent": {"weightedPrompts": [{"text": "a", "weight": 0}]}}, "weightedPrompts"),
        ({"clientContent": {"weightedPrompts": [{"text": "a"}]}}, "weight"),
        ({"clientContent": {"weightedPrompts": [{"text": " ", "weight": 1}]}}, "weightedPrompts"),
        ({"musicGenerationConfig": {"bpm": 1000}}, "bpm"),
        ({"musicGenerationConfig": {"scale": "LOUD"}}, "scale"),
        ({"musicGenerationConfig": {"guidance": 100}}, "guidance"),
        ({"musicGenerationConfig": {"topK": 10_000}}, "topK"),
        ({"musicGenerationConfig": {"seed": -1}}, "seed"),
        ({}, "clientContent"),
        ("no JSON", "JSON"),
    ],
    ids=str,
)
def test_a_message_that_is_not_valid_is_a_warning(raw_port: int, message: Any, named: str) -> None:
    client = RawClient(raw_port)
    client.receive()
    client.send(message)
    assert named in client.receive()["warning"]
    client.ws.close()


def test_the_key_may_be_in_the_query_as_browsers_send_it(tmp_path: Path) -> None:
    with playing(tmp_path, compat_model="demo") as (port, _, app):
        key = create_key(app)
        client = RawClient(port, f"?key={key}")
        assert client.receive() == {"setupComplete": {}}
        client.ws.close()
        handshake = {"Connection": "Upgrade", "Upgrade": "websocket"}
        assert app.test_client().get(f"{ROUTE}?key=wrong", headers=handshake).status_code == 401


def test_a_client_that_never_plays_is_let_go(tmp_path: Path) -> None:
    with playing(tmp_path, compat_model="demo", live_idle_seconds=1) as (port, _, app):
        client = RawClient(port)
        client.receive()
        with pytest.raises(ConnectionClosed) as raised:
            client.receive()
        assert raised.value.reason == 1008
        wait_until(lambda: services_of(app).live_sessions.num_open == 0)


def test_the_documentation_names_every_field() -> None:
    text = section("docs/compatibility.md", "Lyria RealTime")
    names = {field.alias for field in MusicGenerationConfig.model_fields.values()}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_a_setting_turns_the_family_off(tmp_path: Path) -> None:
    assert fake_app(tmp_path, compat_lyria=False).test_client().get(ROUTE).status_code == 404
