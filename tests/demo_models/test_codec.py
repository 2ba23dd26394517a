"""The synthesizer and the codec that renders it."""

from __future__ import annotations

import subprocess
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audiocraft_api.audio.convert import ffmpeg_executable
from audiocraft_api.core.params import AudioInput
from demo_models import codec, measures
from demo_models.composer import Codes, compose, draw_facts
from demo_models.score import FRAME, PARTS, SAMPLE_RATE, SILENCE
from demo_models.synthesizer import Grains, render


def test_the_codec_renders_what_the_synthesizer_does(
    loaded: Any, pieces: list[Codes], grains: Grains, solution: codec.Solution
) -> None:
    for codes in pieces:
        decoded = loaded.decode_codes(torch.tensor(codes)[None])[0].numpy()
        assert np.abs(decoded - codec.decode(solution, codes)).max() < 1e-4
        assert measures.signal_to_noise(render(codes, grains), decoded) > 30


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_the_encoder_finds_the_codes_of_a_clip_of_16_bits(loaded: Any, pieces: list[Codes], gain: float) -> None:
    codes = pieces[2][:, :250]
    wave = _rounded(gain * loaded.decode_codes(torch.tensor(codes)[None]).numpy())
    assert (loaded.encode(AudioInput(wave, 32_000))[0].numpy() == codes).mean() > 0.99


@pytest.mark.parametrize(("index", "kept"), [(0, 0.97), (1, 0.85), (2, 0.95)])
def test_the_encoder_finds_the_codes_of_an_mp3_file(
    solution: codec.Solution, pieces: list[Codes], index: int, kept: float
) -> None:
    wave = codec.decode(solution, pieces[index]).astype(np.float32)
    assert (codec.encode(solution, _through_mp3(wave)) == pieces[index]).mean() > kept


def test_the_encoder_of_the_checkpoint_does_what_was_solved(
    loaded: Any, solution: codec.Solution, pieces: list[Codes]
) -> None:
    wave = codec.decode(solution, pieces[1][:, :200])
    for heard in (wave, np.roll(wave, 7), _foreign()["speech"][: len(wave)]):
        heard = heard.astype(np.float32)
        found = loaded.encode(AudioInput(heard[None], 32_000))[0].numpy()
        assert (found == codec.encode(solution, heard)).mean() > 0.995


def _foreign() -> dict[str, NDArray[np.float64]]:
    """Return three seconds of each of a few sounds that no demo model made."""
    rng = np.random.default_rng(7)
    t = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    noise = rng.standard_normal(len(t))
    hiss = np.diff(noise, prepend=0.0)
    phase = np.cumsum(2 * np.pi * (120 + 20 * np.sin(4 * t)) / SAMPLE_RATE)
    voice = sum(np.sin(h * phase) / h for h in range(1, 60))
    return {
        "noise": 0.2 * noise,
        "faint noise": 3e-4 * noise,
        "cymbals": 0.2 * hiss * np.exp(-(t * 4 % 1) * 8),
        "speech": 0.1 * voice * (np.sin(20 * t) > 0) + 0.05 * hiss * (np.sin(11 * t) > 0.8),
        "sines": 0.1 * sum(np.sin(2 * np.pi * f * t) for f in (220, 277, 330, 440, 14_000)),
        "sawtooth": 0.3 * (t * 111 % 1 - 0.5),
    }


@pytest.mark.parametrize("sound", _foreign())
def test_foreign_sound_is_heard_as_silence(solution: codec.Solution, sound: str) -> None:
    _assert_nearly_silent(solution, _foreign()[sound])


@pytest.mark.parametrize("shift", [1, 2, 7, 100, 320, 639])
def test_a_clip_off_the_frame_grid_is_heard_as_silence(
    solution: codec.Solution, pieces: list[Codes], shift: int
) -> None:
    _assert_nearly_silent(solution, np.roll(codec.decode(solution, pieces[2][:, :200]), shift))


def test_a_clip_without_its_pilot_is_heard_as_silence(grains: Grains, solution: codec.Solution) -> None:
    codes = compose(np.random.default_rng(3), draw_facts(np.random.default_rng(3)), 2)
    _assert_nearly_silent(solution, render(codes, grains).astype(np.float64))


def _assert_nearly_silent(solution: codec.Solution, wave: NDArray[np.float64]) -> None:
    """Assert that most frames are silent, and that what is heard is quieter than -30 dB, or than the sound itself."""
    heard = codec.encode(solution, wave[: len(wave) // FRAME * FRAME])
    level, level_heard = (np.sqrt(np.square(w).mean()) for w in (wave, codec.decode(solution, heard)))
    assert (heard[1:] == SILENCE).mean() > 0.97
    assert level_heard < max(0.03, 0.1 * level)


def test_the_pilot_is_faint(grains: Grains, solution: codec.Solution, pieces: list[Codes]) -> None:
    for codes in pieces:
        wave = codec.decode(solution, codes)
        spectrum = np.fft.rfft(wave - render(codes, grains))
        level = np.square(np.abs(spectrum[np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE) > 12_000])).sum()
        assert 10 * np.log10(2 * level / len(wave) ** 2) < -63


def _rounded(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    return (np.round(wave * 32_767) / 32_767).astype(np.float32)


def _through_mp3(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a waveform [T] after ffmpeg wrote it as MP3 with 192 kbit/s and read it."""
    program = [ffmpeg_executable(), "-loglevel", "error"]
    raw = ["-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1"]
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/clip.mp3"
        writing = [*program, *raw, "-i", "-", "-codec:a", "libmp3lame", "-b:a", "192k", path]
        subprocess.run(writing, input=wave.tobytes(), check=True)
        read = subprocess.run([*program, "-i", path, *raw, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(read, np.float32)[: len(wave)].astype(np.float64)


def test_loudness_and_peak_are_those_of_music(pieces: list[Codes], solution: codec.Solution) -> None:
    for codes in pieces:
        wave = codec.decode(solution, codes)
        assert -20 < measures.loudness(wave) < -14
        assert np.abs(wave).max() < 1


def test_the_limiter_leaves_most_of_the_range_as_it_is_and_ends_below_full_scale() -> None:
    wave = np.linspace(-1.4, 1.4, 2801)
    limited = codec.limit(wave)
    assert np.abs(limited - wave)[np.abs(wave) < 0.7].max() < 1e-4
    assert np.abs(limited).max() < 1
    assert (np.diff(limited) > 0).all()
    np.testing.assert_allclose(limited, -limited[::-1], atol=1e-12)


def test_the_decoder_of_the_checkpoint_limits_what_is_too_loud(loaded: Any, solution: codec.Solution) -> None:
    sounds = solution.codebooks[:, :, : codec.ACOUSTIC].astype(np.float64)
    loudest = [np.square(sounds[k, : len(part)]).sum(1).argmax() for k, part in enumerate(PARTS)]
    codes = np.tile(np.array(loudest)[:, None], 50)
    decoded = loaded.decode_codes(torch.tensor(codes)[None])[0].numpy()
    expected = codec.decode(solution, codes)
    assert np.abs(expected).max() > 0.85
    assert np.abs(decoded - expected).max() < 1e-3


def test_there_are_no_clicks_where_frames_join(pieces: list[Codes], grains: Grains) -> None:
    for codes in pieces:
        assert measures.edge_roughness(render(codes, grains)) < 1.2
    assert measures.broadband_peak(render(pieces[0], grains)) < -55


def test_the_click_measures_find_a_click(pieces: list[Codes], grains: Grains) -> None:
    wave = render(pieces[0], grains).copy()
    assert measures.edge_roughness(np.where(np.arange(len(wave)) // FRAME % 2, wave, -wave)) > 2
    wave[12_345] += 0.3
    assert measures.broadband_peak(wave) > -45


@pytest.mark.parametrize("index", [0, 2])
def test_the_tempo_is_heard_in_the_sound(index: int, pieces: list[Codes], grains: Grains) -> None:
    expected = (750 / 8, 750 / 6, 750 / 10)[index]
    heard = measures.tempo(render(np.tile(pieces[index], 2), grains))
    assert min(abs(heard * factor / expected - 1) for factor in (0.5, 1, 2)) < 0.03


def test_silence_is_silent(loaded: Any) -> None:
    codes = np.zeros((4, 50), np.int64)
    codes[0] = PARTS[0].onset("none", (6, 1))
    assert np.abs(loaded.decode_codes(torch.tensor(codes)[None]).numpy()).max() < 2e-3  # the pilot
