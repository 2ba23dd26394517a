"""ElevenLabs' unmodified Python client makes music with this server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from elevenlabs.client import ElevenLabs
from elevenlabs.core import RequestOptions
from elevenlabs.core.api_error import ApiError
from elevenlabs.types import (
    AudioRefChunk,
    CompositionPlan,
    GenerationChunkInput,
    MusicPrompt,
    SongSection,
    TimeRange,
)
from flask.testing import FlaskClient

from audiocraft_api.web.compat.composition_plan import plan_of
from audiocraft_api.web.compat.elevenlabs import HINTS, MUSIC, SOUND
from support.documents import section
from support.fakes import FakeEngine
from support.http import fake_app, melody_file
from support.keys import ENVIRONMENT_KEY
from support.served import Server


@pytest.fixture(scope="module")
def connect(server: Server) -> Iterator[Callable[[str], ElevenLabs]]:
    with httpx.Client() as http:
        yield lambda key: ElevenLabs(base_url=server.url, api_key=key, httpx_client=http)


@pytest.fixture(scope="module")
def eleven(connect: Callable[[str], ElevenLabs]) -> ElevenLabs:
    return connect(ENVIRONMENT_KEY)


def v1_plan(**section: Any) -> MusicPrompt:
    """Return a plan with an intro of three seconds and a section."""
    parts = {"section_name": "Intro", "positive_local_styles": ["piano"], "negative_local_styles": [], "lines": []}
    intro = SongSection(**parts, duration_ms=3000)
    other = SongSection(**{**parts, "section_name": "Main", "duration_ms": 4000, **section})
    return MusicPrompt(positive_global_styles=["jazz"], negative_global_styles=["vocals"], sections=[intro, other])


@pytest.mark.parametrize(
    ("output_format", "sample_rate"),
    [("mp3_44100_128", 44_100), ("mp3_22050_32", 22_050), ("opus_48000_64", 48_000), (None, 44_100)],
)
def test_music_is_composed_in_each_format(eleven: ElevenLabs, output_format: Any, sample_rate: int) -> None:
    audio = b"".join(eleven.music.compose(prompt="cello", music_length_ms=3000, output_format=output_format))
    about = soundfile.info(io.BytesIO(audio))
    assert (about.samplerate, about.duration) == (sample_rate, pytest.approx(3, abs=0.1))


@pytest.mark.parametrize(
    ("output_format", "num_bytes"),
    [("pcm_16000", 2 * 2 * 48_000), ("ulaw_8000", 24_000), ("alaw_8000", 24_000)],
)
def test_samples_without_a_header_have_the_rate_of_their_format(
    eleven: ElevenLabs, output_format: Any, num_bytes: int
) -> None:
    audio = b"".join(eleven.music.compose(prompt="cello", music_length_ms=3000, output_format=output_format))
    assert len(audio) == num_bytes


def test_music_is_streamed_while_it_is_generated(eleven: ElevenLabs, hold: Path) -> None:
    pieces = iter(eleven.music.stream(prompt="hold after 20", music_length_ms=3000, output_format="pcm_44100"))
    first = next(pieces)
    hold.unlink()
    assert len(first + b"".join(pieces)) == 2 * 2 * 3 * 44_100


def test_a_stored_song_can_be_continued_by_a_plan(eleven: ElevenLabs) -> None:
    song = eleven.music.compose_detailed(
        prompt="cello", music_length_ms=3000, store_for_inpainting=True, output_format="mp3_44100_128"
    )
    assert song.song_id
    assert song.filename == "music.mp3"
    assert song.json["composition_plan"]["positive_global_styles"] == ["cello"]
    assert soundfile.info(io.BytesIO(song.audio)).duration == pytest.approx(3, abs=0.1)
    plan = CompositionPlan(
        chunks=[
            AudioRefChunk(song_id=song.song_id, range=TimeRange(start_ms=1000, end_ms=2000)),
            GenerationChunkInput(
                text="[Outro]", duration_ms=3000, positive_styles=["choir"], negative_styles=["drums"]
            ),
        ]
    )
    continued = b"".join(eleven.music.compose(composition_plan=plan, model_id="music_v2", output_format="pcm_8000"))
    assert len(continued) == 2 * 2 * 4 * 8000  # with the second that is continued


def test_an_uploaded_song_can_be_continued_by_a_plan(eleven: ElevenLabs) -> None:
    song_id = eleven.music.upload(file=("song.wav", melody_file().read(), "audio/wav")).song_id
    source = {"song_id": song_id, "range": {"start_ms": 0, "end_ms": 1000}}
    plan = v1_plan(source_from=source)
    plan = MusicPrompt(**{**plan.dict(), "sections": plan.sections[::-1]})
    continued = b"".join(eleven.music.compose(composition_plan=plan, output_format="pcm_8000"))
    assert len(continued) == 2 * 2 * 4 * 8000  # with the second that is continued


def test_what_musicgen_cannot_do_is_refused(eleven: ElevenLabs) -> None:
    file = ("song.wav", melody_file().read(), "audio/wav")
    refused: list[tuple[Callable[[], Any], int, str]] = [
        (lambda: b"".join(eleven.music.separate_stems(file=file)), 404, "does not separate stems"),
        (lambda: list(eleven.music.compose_detailed_stream(prompt="cello")), 404, "does not stream details"),
        (lambda: eleven.music.upload(file=file, extract_composition_plan="music_v1"), 422, "extract_composition_plan"),
        (lambda: eleven.music.upload(file=("song.wav", b"abc", "audio/wav")), 422, "'body', 'file'.*not audio"),
    ]
    for call, status, text in refused:
        with pytest.raises(ApiError, match=text) as raised:
            call()
        assert raised.value.status_code == status


def test_a_plan_and_an_upload_count_as_requests(connect: Callable[[str], ElevenLabs], spent_key: str) -> None:
    music, options = connect(spent_key).music, RequestOptions(max_retries=0)
    for call in (
        lambda: music.composition_plan.create(prompt="jazz", request_options=options),
        lambda: music.upload(file=("song.wav", melody_file().read(), "audio/wav"), request_options=options),
    ):
        with pytest.raises(ApiError) as raised:
            call()
        assert (raised.value.status_code, raised.value.body["detail"]["status"]) == (429, "rate_limited")


def test_a_plan_is_made_and_composed(eleven: ElevenLabs) -> None:
    plan = eleven.music.composition_plan.create(prompt="slow jazz, piano, no drums", music_length_ms=6000)
    assert plan.positive_global_styles == ["slow jazz", "piano"]
    assert plan.negative_global_styles == ["drums"]
    song = eleven.music.compose_detailed(composition_plan=plan, output_format="mp3_22050_32")
    assert song.json["composition_plan"]["sections"][0]["section_name"] == "Main"
    assert soundfile.info(io.BytesIO(song.audio)).duration == pytest.approx(6, abs=0.1)


def test_sound_is_generated_from_text(eleven: ElevenLabs) -> None:
    audio = b"".join(eleven.text_to_sound_effects.convert(text="rain", duration_seconds=1.0, prompt_influence=0.5))
    assert soundfile.info(io.BytesIO(audio)).duration == pytest.approx(1, abs=0.1)


def test_a_wrong_key_is_refused(connect: Callable[[str], ElevenLabs]) -> None:
    with pytest.raises(ApiError) as raised:
        b"".join(connect("wrong").music.compose(prompt="cello", music_length_ms=3000))
    assert raised.value.status_code == 401
    assert raised.value.body["detail"]["status"] == "invalid_api_key"


def test_a_limit_is_reported(connect: Callable[[str], ElevenLabs], spent_key: str) -> None:
    with pytest.raises(ApiError) as raised:
        b"".join(
            connect(spent_key).music.compose(prompt="cello", music_length_ms=3000, request_options={"max_retries": 0})
        )
    assert raised.value.status_code == 429
    assert raised.value.body["detail"]["status"] == "rate_limited"


def test_a_refused_prompt_has_a_suggestion(eleven: ElevenLabs) -> None:
    with pytest.raises(ApiError) as raised:
        b"".join(eleven.music.compose(prompt="kill yourself"))
    assert raised.value.status_code == 400
    assert raised.value.body["detail"]["status"] == "bad_prompt"
    assert raised.value.body["detail"]["data"]["prompt_suggestion"]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"prompt": "cello", "music_length_ms": 400_000}, "music_length_ms"),
        ({"prompt": "cello", "output_format": "mp3_1_1"}, "output_format"),
        ({"prompt": "cello", "finetune_id": "mine"}, "finetune_id"),
        ({}, "prompt"),
        ({"prompt": "cello", "composition_plan": v1_plan()}, "prompt"),
        ({"composition_plan": v1_plan(duration_ms=100)}, "composition_plan"),
        (
            {"composition_plan": v1_plan(source_from={"song_id": "0" * 32, "range": {"start_ms": 0, "end_ms": 100}})},
            "composition_plan",
        ),
    ],
)
def test_a_bad_field_is_named(eleven: ElevenLabs, fields: dict[str, Any], location: str) -> None:
    with pytest.raises(ApiError) as raised:
        b"".join(eleven.music.compose(**fields))
    assert raised.value.status_code == 422
    (detail,) = raised.value.body["detail"]
    assert detail["loc"] == ["body", location]
    assert detail["msg"]


def test_the_example_in_the_documentation_works(run_example: Callable[[str], None], tmp_path: Path) -> None:
    run_example("ElevenLabs")
    assert soundfile.info(tmp_path / "song.mp3").duration == pytest.approx(4, abs=0.1)


def test_the_documentation_names_every_field() -> None:
    text = section("docs/compatibility.md", "ElevenLabs")
    names = {*MUSIC.fields, *MUSIC.accepted, *SOUND.fields, *SOUND.accepted, *HINTS}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_a_plan_becomes_segments_with_negative_prompts(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"composition_plan": v1_plan(negative_local_styles=["drums"]).dict(), "seed": 3, "lyrics_text": "la"}
    assert client.post("/v1/music?output_format=pcm_8000", json=body).status_code == 200
    params = engine.submitted[0].params
    assert params.segments == (("jazz, piano", 3, "vocals"), ("jazz, piano", 4, "vocals, drums"))
    assert (params.model, params.seed) == ("small", 3)


def test_localai_fields_are_words_of_the_prompt(client: FlaskClient, engine: FakeEngine) -> None:
    body = {"model": "demo", "text": "house", "bpm": 120, "keyscale": "A minor", "duration_seconds": 1}
    assert client.post("/v1/sound-generation", json=body | {"instrumental": True}).status_code == 200
    assert engine.submitted[0].params.description == "house, 120 bpm, A minor"
    assert engine.submitted[0].params.cfg_coef == 3


@pytest.mark.parametrize("milliseconds", [3000, 19_999, 20_000, 300_000])
@pytest.mark.parametrize("has_chunks", [False, True])
def test_the_parts_of_a_plan_have_the_requested_length(milliseconds: int, has_chunks: bool) -> None:
    plan = plan_of("jazz", milliseconds, has_chunks=has_chunks)
    lengths = [part["duration_ms"] for part in plan["chunks" if has_chunks else "sections"]]
    assert sum(lengths) == milliseconds
    assert all(3000 <= length <= 120_000 for length in lengths)


def test_a_setting_turns_the_family_off(tmp_path: Path) -> None:
    client = fake_app(tmp_path, compat_elevenlabs=False).test_client()
    assert client.post("/v1/music", json={"prompt": "cello"}).status_code == 404
