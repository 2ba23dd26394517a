"""Tags: readable in every format, whatever the prompt, without any change to the samples."""

from __future__ import annotations

import io
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile

from audiocraft_api import __version__
from audiocraft_api.audio import convert
from audiocraft_api.audio.tags import MAX_TITLE_CHARACTERS
from audiocraft_api.core.errors import ConversionFailed
from audiocraft_api.core.params import AudioInput, GenerationParams
from audiocraft_api.generation.recipe import DIGITAL_SOURCE_TYPE, Recipe, recipe_details

SAMPLE_RATE = 32_000
INFO = {"INAM": "title", "IART": "artist", "IGNR": "genre", "ICMT": "comment"}
ID3 = {
    "TIT2": "title",
    "TPE1": "artist",
    "TCON": "genre",
    "TXXX:comment": "comment",
}  # frames of ID3v2; TXXX is for user-defined text
MP4 = {"©nam": "title", "©ART": "artist", "©gen": "genre", "©cmt": "comment"}
VORBIS = {"title": "title", "artist": "artist", "genre": "genre", "comment": "comment", "description": "comment"}
HOSTILE_PROMPTS = {
    "an option": "-i /etc/passwd -y /tmp/x",
    "a name and a value": "title=x -metadata comment=y",
    "lines": "one\ntwo\r\nthree\x85four\u2028five",
    "NUL": "before\x00after",
    "controls": "".join(map(chr, range(1, 32))) + "x\x7f\x80\x9f",
    "right to left": "abc \u202egnos.exe\u202c \u2066def\u2069",
    "lone surrogates": "a\ud800b\udfffc",
    "emoji": "🎵🥁👩‍🎤" * 30,
    "Arabic": "موسيقى هادئة",
    "long": "x" * 2_000,
    "long emoji": "🎵" * 2_000,
    "quotes": "'\"`$(id)\\;#={}[]\\",
    "ends in backslashes": "a\\\\\\",
    "spaces": "  two  spaces  ",
    "combining": "a\u0301\u0300" * 100,
    "no characters": "\ufffe\uffff",
}


def recipe(prompt: str, output_format: str) -> Recipe:
    params = GenerationParams("demo", prompt, 1.5, seed=7, temperature=0.9)
    details = recipe_details(
        params, "abc123", "int6", output_format, "batching", melody=params.melody, continuation={}, added={}
    )
    return Recipe(output_format, SAMPLE_RATE, 1.5, 0.1, 7, "demo", "abc123", details)


def tone() -> np.ndarray:
    return (0.3 * np.sin(np.arange(20_000) / 7)).astype(np.float32)[np.newaxis]


def tags_of(audio: bytes) -> dict[str, str]:
    """Return title, artist, genre and comment as mutagen reads them, or for WAV as its chunks contain them."""
    if audio[:4] == b"RIFF":
        found, names = info_chunk(audio), INFO
    else:
        file = mutagen.File(io.BytesIO(audio))
        assert file is not None
        names = MP4 if audio[4:8] == b"ftyp" else ID3 if audio[:3] == b"ID3" else VORBIS
        values = {name: file.tags[name] for name in names if name in file.tags}
        found = {name: str(value[0] if isinstance(value, list) else value.text[0]) for name, value in values.items()}
    return {names[name]: text for name, text in found.items() if name in names}


def info_chunk(audio: bytes) -> dict[str, str]:
    found = {}
    (size,) = struct.unpack("<I", audio[4:8])
    assert size + 8 == len(audio)
    offset = 12
    while offset < len(audio):
        name, size = audio[offset : offset + 4], struct.unpack("<I", audio[offset + 4 : offset + 8])[0]
        if name == b"LIST":
            assert audio[offset + 8 : offset + 12] == b"INFO"
            offset += 12
            continue
        if name.startswith(b"I"):
            found[name.decode()] = audio[offset + 8 : offset + 8 + size].rstrip(b"\0").decode()
        offset += 8 + size + size % 2
    return found


@pytest.mark.parametrize("kind", HOSTILE_PROMPTS)
@pytest.mark.parametrize("name", convert.FORMATS)
def test_every_file_contains_its_recipe_whatever_the_prompt(name: str, kind: str) -> None:
    prompt = HOSTILE_PROMPTS[kind]
    wanted = recipe(prompt, name)
    tags = tags_of(convert.encode(tone(), SAMPLE_RATE, name, wanted.tags()))
    comment = json.loads(tags["comment"])
    assert comment.pop("digital_source_type") == DIGITAL_SOURCE_TYPE
    assert wanted.details is not None
    assert comment | {"created": wanted.details["created"]} == wanted.details
    assert tags["genre"] == "AI-generated"
    assert tags["artist"] == f"AudioCraft API {__version__}, demo@abc123"
    title = tags.get("title", "")
    assert len(title) <= MAX_TITLE_CHARACTERS
    assert not set(title) & set("\n\r\x00\x7f\u202e\u2066\u2028")
    if kind in ("an option", "a name and a value", "Arabic", "quotes"):
        assert title.rstrip(" ") == prompt


@pytest.mark.parametrize("name", ["mp3", "m4a", "opus"])
def test_prompts_are_neither_in_ffmpegs_arguments_nor_in_the_log_when_it_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\ncat > /dev/null\necho "$@" > {tmp_path}/arguments\nexit 1\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConversionFailed):
        convert.encode(tone(), SAMPLE_RATE, name, recipe("for my secret love", name).tags())
    assert name in (tmp_path / "arguments").read_text()
    assert "secret" not in (tmp_path / "arguments").read_text() + caplog.text


@pytest.mark.parametrize("name", [name for name in convert.FORMATS if name != "m4a"])
def test_tags_do_not_change_samples(name: str) -> None:
    plain, tagged = (convert.encode(tone(), SAMPLE_RATE, name, tags) for tags in (None, recipe("a", name).tags()))
    samples = [soundfile.read(io.BytesIO(audio), dtype="float32")[0] for audio in (plain, tagged)]
    assert np.array_equal(*samples)


def test_the_header_of_a_wav_file_stays_44_bytes_long() -> None:
    plain, tagged = (convert.encode(tone(), SAMPLE_RATE, "wav", tags) for tags in (None, recipe("a", "wav").tags()))
    assert tagged[8 : len(plain)] == plain[8:]


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "m4a"])
def test_repeating_a_request_later_gives_the_same_bytes(name: str) -> None:
    first = recipe("a", name)
    assert first.details is not None
    later = replace(first, details={**first.details, "created": "2030-01-01T00:00:00Z"})
    assert convert.encode(tone(), SAMPLE_RATE, name, first.tags()) == convert.encode(
        tone(), SAMPLE_RATE, name, later.tags()
    )


@pytest.mark.parametrize("name", convert.FORMATS)
def test_prompts_can_be_left_out(name: str) -> None:
    audio = convert.encode(tone(), SAMPLE_RATE, name, recipe("for my secret love", name).tags(with_prompt=False))
    assert "prompt" not in json.loads(tags_of(audio)["comment"])
    assert b"secret" not in audio


def test_a_melodys_digest_covers_its_samples_and_their_rate() -> None:
    def melody(waveform: np.ndarray, sample_rate: int) -> str:
        params = GenerationParams("demo", "a", 1.0, seed=1, melody=AudioInput(waveform, sample_rate))
        digest = recipe_details(
            params, "r", "exact", "wav", "batching", melody=params.melody, continuation={}, added={}
        )["melody"]
        assert len(digest) == 64
        return str(digest)

    stereo = np.concatenate([tone(), 2 * tone()])
    assert melody(stereo, 32_000) == melody(np.asfortranarray(stereo), 32_000)
    others = [melody(stereo, 44_100), melody(stereo[:1], 32_000), melody(stereo.reshape(1, -1), 32_000)]
    assert len({melody(stereo, 32_000), *others}) == 4
