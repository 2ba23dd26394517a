"""The file with the codes of audio: nothing is lost, it is small, and a damaged one is recognized."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from audiocraft_api.core.params import AudioInput, Codes
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.continuation import Part, continued, with_codes
from audiocraft_api.generation.stored_codes import from_bytes, to_bytes
from audiocraft_api.tasks.command import decode_command, encode_command


def random_codes(num_codebooks: int, num_frames: int, codebook_size: int = 2048) -> Codes:
    tokens = np.random.default_rng(0).integers(0, codebook_size, (num_codebooks, num_frames), np.uint16)
    return Codes(tokens, "0123abcd")


@pytest.mark.parametrize(("num_codebooks", "num_frames"), [(4, 1), (1, 7), (8, 150), (4, 15_000)])
def test_codes_are_read_as_they_were_written(num_codebooks: int, num_frames: int) -> None:
    codes = random_codes(num_codebooks, num_frames, 65_536)
    read = from_bytes(to_bytes(codes))
    assert read is not None
    np.testing.assert_array_equal(read.tokens, codes.tokens)
    assert (read.tokens.dtype, read.codec) == (np.uint16, "0123abcd")


def test_a_minute_of_mono_takes_18_kilobytes() -> None:
    assert len(to_bytes(random_codes(4, 3000))) < 18_500


def test_a_damaged_file_is_never_read_as_codes_of_the_same_codec() -> None:
    data = to_bytes(random_codes(4, 100))
    changed = [data[:end] for end in range(len(data))]
    changed += [data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :] for index in range(len(data))]
    for each in changed:
        read = from_bytes(each)
        assert read is None or read.codec != "0123abcd"


def test_a_file_that_claims_or_contains_too_much_is_refused() -> None:
    assert from_bytes(b"codes 1 ab 999 999999\n" + zlib.compress(bytes(100))) is None
    assert from_bytes(b"codes 1 ab 4 100\n" + zlib.compress(bytes(10**7))) is None
    assert from_bytes(b"codes 2 ab 4 1\n" + zlib.compress(bytes(8))) is None


def recording(seconds: float, sample_rate: int = 32_000) -> AudioInput:
    ramp = np.linspace(0, 1, int(seconds * sample_rate), endpoint=False, dtype=np.float32)
    return AudioInput(ramp[None], sample_rate)


@pytest.mark.parametrize("seconds", [2.0, 2.07, 1.99])
def test_audio_gets_the_length_of_its_codes(seconds: float) -> None:
    codes = random_codes(4, 100)
    given = recording(seconds)
    audio = with_codes(given, codes)
    assert audio.codes is codes
    assert audio.waveform.shape == (1, 64_000)
    num_same = min(64_000, given.waveform.shape[1])
    np.testing.assert_array_equal(audio.waveform[:, :num_same], given.waveform[:, :num_same])


@pytest.mark.parametrize("seconds", [1.8, 2.2])
def test_codes_of_another_length_are_not_those_of_the_audio(seconds: float) -> None:
    audio = recording(seconds)
    assert with_codes(audio, random_codes(4, 100)) is audio
    assert with_codes(audio, None) is audio


@pytest.mark.parametrize(
    ("part", "first", "last"),
    [
        (Part(), 0, 100),
        (Part(0.5), 25, 100),
        (Part(0.5, 1.5), 25, 75),
        (Part(0.511, 1.509), 26, 75),  # to the nearest frame; then a start within a frame leaves that frame out
        (Part(0.4999999, 1.4999999), 25, 75),
    ],
)
def test_start_and_end_choose_whole_frames_of_the_codes(part: Part, first: int, last: int) -> None:
    codes = random_codes(4, 100)
    audio = with_codes(recording(2.0), codes)
    command = GenerateCommand("a", "small", 5.0, seed=1)
    found = continued(command, audio, part, include_input=True, window_seconds=30.0)
    assert found.audio_prompt is not None
    assert found.audio_prompt.codes is not None
    np.testing.assert_array_equal(found.audio_prompt.codes.tokens, codes.tokens[:, first:last])
    assert (found.prompt_start, found.prompt_end) == (first / 50, last / 50)
    np.testing.assert_array_equal(found.audio_prompt.waveform, audio.waveform[:, first * 640 : last * 640])
    again = continued(
        command, audio, Part(found.prompt_start, found.prompt_end), include_input=True, window_seconds=30.0
    )
    assert (again.prompt_start, again.prompt_end) == (found.prompt_start, found.prompt_end)

    stored = decode_command(*encode_command(found)).audio_prompt
    assert stored is not None
    assert stored.codes is not None
    assert stored.codes.codec == codes.codec
    np.testing.assert_array_equal(stored.codes.tokens, found.audio_prompt.codes.tokens)
