"""The formats of other services: files and streams have the rates, channels and lengths that their names promise."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from audiocraft_api.audio import convert
from audiocraft_api.audio.stream_encoding import open_encoder

SAMPLE_RATE = 32_000
STEREO = (0.3 * np.sin(np.arange(SAMPLE_RATE) * 0.05) * np.ones((2, 1))).astype(np.float32)  # [C, T], one second


def streamed(output_format: str) -> bytes:
    encoder = open_encoder(output_format, 2, SAMPLE_RATE, STEREO.shape[1], 20)
    try:
        return encoder.feed(STEREO[:, :10_000]) + encoder.feed(STEREO[:, 10_000:]) + encoder.finish()
    finally:
        encoder.close()


@pytest.mark.parametrize(
    ("output_format", "num_bytes"),
    [
        *(("pcm_44100", 4 * 44_100), ("pcm_8000", 4 * 8_000), ("pcm", 2 * 24_000)),
        *(("ulaw_8000", 8_000), ("alaw_8000", 8_000)),
    ],
)
def test_samples_have_no_header(output_format: str, num_bytes: int) -> None:
    file = convert.encode(STEREO, SAMPLE_RATE, output_format)
    assert len(file) == num_bytes
    assert streamed(output_format) == file


@pytest.mark.parametrize(
    ("output_format", "sample_rate"), [("mp3_22050_32", 22_050), ("mp3_48000_320", 48_000), ("opus_48000_32", 48_000)]
)
def test_compressed_audio_has_the_rate_of_its_name(output_format: str, sample_rate: int) -> None:
    for audio in (convert.encode(STEREO, SAMPLE_RATE, output_format), streamed(output_format)):
        about = soundfile.info(io.BytesIO(audio))
        assert (about.samplerate, about.channels, about.duration) == (sample_rate, 2, pytest.approx(1, abs=0.1))


def test_aac_consists_of_frames() -> None:
    for audio in (convert.encode(STEREO, SAMPLE_RATE, "aac"), streamed("aac")):
        assert audio[:2] == b"\xff\xf1"


def test_the_bit_rate_is_constant() -> None:
    sizes = {rate: len(streamed(f"mp3_44100_{rate}")) for rate in (64, 192)}
    assert sizes[64] == pytest.approx(64_000 / 8, rel=0.1)
    assert sizes[192] == pytest.approx(192_000 / 8, rel=0.1)
