"""Melodies of notes in the engines: equal chroma gives equal tokens, in one window and over several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audiocraft_api.audio.midi import read_top_line
from audiocraft_api.audio.notes import line_of_notes, parse_notes
from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.params import AudioInput
from audiocraft_api.engine.batching import BatchingEngine
from support.engines import (
    LoadedModels,
    assert_same_codes,
    codes_engine,
    noise,
    params,
    reference_codes,
    short_window_model,
    wait_for_codes,
)
from support.melodies import line_of_bins, midi_file

HOP_MS = 128.0


def line(text: str, bpm: int = 120) -> MelodyLine:
    return line_of_notes(parse_notes(text), bpm)


def read(data: bytes) -> MelodyLine:
    return read_top_line(data, max_events=1000, max_seconds=60)


def extracted_line(cache: LoadedModels, recording: AudioInput) -> MelodyLine:
    """Return the line whose chroma is that which audiocraft extracts from a recording."""
    with cache.lease("demo-melody") as model:
        conditioner = model.lm.condition_provider.conditioners["self_wav"]
        waveform = torch.from_numpy(recording.waveform)[None]
        chroma = conditioner._compute_wav_embedding(waveform, recording.sample_rate)[0]
    return line_of_bins(chroma.argmax(dim=-1).numpy(), HOP_MS)


def test_notes_and_a_recording_of_equal_chroma_give_equal_tokens(
    exact_engine: BatchingEngine, cache: LoadedModels
) -> None:
    recording = AudioInput(noise(2.0).waveform[:, : 4096 * 14 + 100], 32_000)
    notes = extracted_line(cache, recording)
    assert len({note.pitch for note in notes.notes}) > 1
    followed = [
        wait_for_codes(exact_engine.submit(params("demo-melody", melody=melody)))
        for melody in (recording, notes, line("C4:1 G4:1"))
    ]
    np.testing.assert_array_equal(followed[0], followed[1])
    assert not np.array_equal(followed[0], followed[2])


def test_a_midi_file_and_equal_notes_give_equal_tokens(exact_engine: BatchingEngine) -> None:
    text = line("C4:1 E4:1 G4:2 -:1", bpm=92)
    file = read(midi_file([(60, 1), (64, 1), (67, 2), (None, 1)], tempo=round(60e6 / 92)))
    codes = [wait_for_codes(exact_engine.submit(params("demo-melody", melody=melody))) for melody in (text, file)]
    np.testing.assert_array_equal(*codes)


def test_both_engines_follow_notes_with_every_other_control(exact_engine: BatchingEngine, cache: LoadedModels) -> None:
    melody = line("C4:1 E4:1 G4:2 -:1")
    cases = [
        params("demo-melody", melody=melody),
        params("demo-melody", melody=melody, description="", cfg_coef=1.0),
        params("demo-melody", melody=melody, duration_seconds=1.0, negative_description="loud drums and a crowd"),
        params("demo-melody", melody=melody, duration_seconds=1.5, audio_prompt=noise(1.0)),
    ]
    assert_same_codes(exact_engine, cache, cases)


def test_notes_of_a_long_request_go_on_in_each_window_as_a_recording_does(demo_checkpoints: Path) -> None:
    cache = LoadedModels(lambda name: short_window_model(demo_checkpoints, name))
    engine = codes_engine(cache)
    melody = line("C4:4 E4:4 G4:4 B4:1", bpm=60)
    case = params("demo-melody", melody=melody, duration_seconds=20.0, audio_prompt=noise(15.0))
    assert_same_codes(engine, cache, [case])
    with cache.lease("demo-melody") as model:
        first, later = (model.condition_tensors("piano", melody, start)[0]["self_wav"] for start in (0.0, 18.0))
        same = model.condition_tensors("piano", line("E4:3 G4:4 B4:1 C4:4 E4:1", bpm=60), 0.0)[0]["self_wav"]
        whole = model.condition_tensors("piano", melody, None)[0]["self_wav"]
    assert first[0].shape == later[0].shape == whole[0].shape
    assert not torch.equal(first[0], later[0])
    assert torch.equal(later[0], same[0])  # 18 seconds are 13 and 5: the melody begins again, and is in its E
    engine.close()


def test_the_condition_of_notes_is_what_audiocraft_makes_of_the_same_chroma(cache: LoadedModels) -> None:
    recording = AudioInput(noise(1.5, seed=4).waveform, 32_000)
    notes = extracted_line(cache, recording)
    with cache.lease("demo-melody") as model:
        audio_rows = model.condition_tensors("piano", recording)
        note_rows = model.condition_tensors("piano", notes)
    for audio_row, note_row in zip(audio_rows, note_rows, strict=True):
        assert list(audio_row) == list(note_row)  # the order of the prefix
        for name, (condition, mask) in audio_row.items():
            assert torch.equal(condition, note_row[name][0])
            assert torch.equal(mask, note_row[name][1])
            assert mask.dtype == note_row[name][1].dtype


def test_a_model_without_melodies_refuses_notes(cache: LoadedModels) -> None:
    with cache.lease("demo") as model, pytest.raises(InvalidRequest, match="cannot follow a melody"):
        reference_codes(model, params(melody=line("C4:1")))
