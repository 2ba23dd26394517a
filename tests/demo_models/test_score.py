"""The score: codes, what follows them, and how they are read back."""

from __future__ import annotations

import numpy as np
import pytest

from demo_models import reader
from demo_models.composer import Codes, bar_frames, compose, draw_facts, notes_of
from demo_models.harmony import KEYS, LOOPS, chord_of, tones_of
from demo_models.score import NUM_CODES, PARTS, hertz, loop_of


def test_every_code_has_a_successor_within_its_part() -> None:
    for part in PARTS:
        assert len(part) <= NUM_CODES
        assert part.successor[: len(part)].max() < len(part)


def test_a_sustained_note_is_in_tune() -> None:
    for pitch in range(60, 80):
        _, (frequency,) = loop_of((pitch,), (7, 13))
        assert abs(1200 * np.log2(frequency / hertz(pitch))) < 6


def test_every_chord_of_every_loop_belongs_to_its_key() -> None:
    for number, key in enumerate(KEYS):
        for loop in range(len(LOOPS[key.mode])):
            assert all(tones_of(chord_of(number, loop, bar)) <= key.scale for bar in range(4))


def test_a_pattern_lists_its_notes() -> None:
    assert notes_of("x--.r-f.") == [(0, 3, "x"), (4, 2, "r"), (6, 1, "f")]


def test_what_is_composed_is_legal_in_key_and_in_time() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        facts = draw_facts(rng)
        codes = compose(rng, facts, 4)
        reading = reader.read(codes)
        assert codes.shape == (4, 4 * bar_frames(facts))
        assert reader.legal_steps(codes).all()
        assert (reading.tempo, reading.drums, reading.mode) == (facts.tempo, facts.drums, facts.mode)
        assert (reading.chords, reading.bass, reading.lead) == (facts.chords, facts.bass, facts.lead)
        assert (reading.on_grid, reading.chords_in_key, reading.lead_in_scale) == (1, 1, 1)
        assert reader.on_chord(codes) == 1


def test_what_is_composed_has_a_form() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        form = reader.form(compose(rng, draw_facts(rng), 9))
        assert all(form["chord of bar -4"])
        assert all(form["rhythm of bar -2"])
        assert not any(form["rhythm of bar -1"])


@pytest.mark.parametrize("part", range(4))
def test_the_reader_finds_a_frame_that_breaks_the_rules(part: int, pieces: list[Codes]) -> None:
    codes = pieces[1].copy()
    at = next(t for t in range(50, 100) if codes[part, t] > 0 and codes[part, t + 1] == codes[part, t] + 1)
    codes[part, at] = PARTS[part].successor[codes[part, at]]
    illegal = np.argwhere(~reader.legal_steps(codes))
    assert {int(k) for k, _ in illegal} == {part}
    assert all(at - 1 <= t <= at for _, t in illegal)


def test_random_codes_are_illegal() -> None:
    codes = np.random.default_rng(4).integers(0, NUM_CODES, (4, 200))
    legal = reader.legal_steps(codes).mean(1)
    assert legal[0] < 0.05
    assert legal.mean() < 0.3


def test_the_sheet_shows_one_line_for_each_bar(pieces: list[Codes]) -> None:
    lines = reader.sheet(pieces[0]).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(" 1 none  | 0:C 4:C 8:C |  | ")
