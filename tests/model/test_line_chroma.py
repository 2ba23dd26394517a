"""Chroma written from notes: what audiocraft's extractor finds in a recording of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from audiocraft_api.audio.notes import line_of_notes, parse_notes
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.model.line_chroma import SILENCE, line_chroma
from support.engines import demo_model
from support.melodies import line_of_bins, played

RATE, HOP, WINDOW = 32_000, 4096, 16_384  # of the released melody models
HOP_MS = HOP * 1000 / RATE

SCALE = "C4:1 D4:1 E4:1 F#4:1 G4:1 A4:1 Bb4:1 B4:1"
MELODY = "E4:1 G4:1/2 A4:1/2 -:1 Eb5:1.5 C4:1/2 -:3 B3:2 C#4:2 -:2"


def bins(line: MelodyLine, **options: Any) -> npt.NDArray[np.int64]:
    """Return the pitch class of each frame."""
    chroma = line_chroma(line, **{"sample_rate": RATE, "hop": HOP, "window": WINDOW, "seconds": line.seconds} | options)
    assert chroma.dtype == np.float32
    assert (chroma.sum(axis=1) == 1).all()
    found: npt.NDArray[np.int64] = chroma.argmax(axis=1)
    return found


def line(text: str, bpm: int = 120) -> MelodyLine:
    return line_of_notes(parse_notes(text), bpm)


def test_the_models_have_the_hop_and_the_window_of_these_tests(demo_checkpoints: Path) -> None:
    extractor = demo_model(demo_checkpoints, "demo-melody").lm.condition_provider.conditioners["self_wav"].chroma
    assert (extractor.sample_rate, extractor.winhop, extractor.winlen) == (RATE, HOP, WINDOW)


@pytest.mark.parametrize(("text", "bpm"), [(SCALE, 60), (SCALE, 130), (MELODY, 90), (MELODY, 200)])
def test_it_equals_the_chroma_extracted_from_a_recording(demo_checkpoints: Path, text: str, bpm: int) -> None:
    extractor = demo_model(demo_checkpoints, "demo-melody").lm.condition_provider.conditioners["self_wav"].chroma
    written_line = line(text, bpm)
    written = bins(written_line)

    extracted = extractor(torch.from_numpy(played(written_line, RATE))[None])[0].argmax(dim=-1).numpy()

    assert written.shape == extracted.shape
    assert (written == extracted).mean() > 0.9
    ends = np.array([note.end_ms for note in written_line.notes])
    centers = np.arange(len(written)) * HOP_MS
    distance = np.abs(centers[:, None] - np.array([0, *ends])).min(axis=1)
    is_inside = distance > WINDOW * 1000 / RATE / 2  # the window has one note or rest only
    assert is_inside.any() == (text == MELODY or bpm == 60)
    np.testing.assert_array_equal(written[is_inside], extracted[is_inside])


def test_frames_have_the_pitch_class_that_sounds_most_around_their_center() -> None:
    found = bins(line("C4:1 E5:1 Bb2:1"))
    np.testing.assert_array_equal(found, [0, 0, 0, 0, 4, 4, 4, 4, 10, 10, 10, 10])


def test_octaves_of_a_pitch_class_count_together() -> None:
    assert set(bins(line("C4:1/4 D4:1/8 C5:1/4 D4:1/8 C2:1/4 C4:1"))) == {0}


def test_a_long_rest_reads_as_silence_does_and_a_short_one_as_the_notes_beside_it() -> None:
    np.testing.assert_array_equal(bins(line("G4:2 -:2 G4:2", 120))[[0, 11, 12, 23]], [7, SILENCE, SILENCE, 7])
    assert set(bins(line("G4:0.9 -:0.1 G4:0.9 -:0.1"))) == {7}


def test_the_extractor_gives_silence_the_same_bin(demo_checkpoints: Path) -> None:
    extractor = demo_model(demo_checkpoints, "demo-melody").lm.condition_provider.conditioners["self_wav"].chroma
    assert set(extractor(torch.zeros(1, RATE))[0].argmax(dim=-1).tolist()) == {SILENCE}


def test_a_window_of_a_long_request_begins_within_the_line_which_repeats() -> None:
    melody = line(MELODY, 100)
    whole = bins(melody, seconds=120.0)
    for begin in (HOP * 125 / RATE, HOP * 250 / RATE):  # 16 and 32 seconds, where frames have the same centers
        window = bins(melody, begin_seconds=begin, seconds=30.0)
        first = round(begin * RATE / HOP)
        np.testing.assert_array_equal(window[2:-2], whole[first : first + 235][2:-2])  # without the reflected ends


def test_a_chroma_that_was_read_as_a_line_is_written_as_it_was() -> None:
    given = np.random.default_rng(3).integers(0, 12, 100)
    np.testing.assert_array_equal(bins(line_of_bins(given, HOP_MS)), given)
