"""Melodies written as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiocraft_api.audio.notes import MAX_NOTES_CHARACTERS, NOTES_PATTERN, WrittenNote, line_of_notes, parse_notes
from audiocraft_api.core.melody_line import REST, LineNote, MelodyLine

NAMES = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"]


def name_of(pitch: int) -> str:
    return "-" if pitch == REST else f"{NAMES[pitch % 12]}{pitch // 12 - 1}"


def test_notes_have_pitches_and_beats() -> None:
    assert parse_notes("C4:1 E4:0.5 g4:1/3 -:.25\nBb3:2. F#-1:10/4") == [
        (60, 1.0),
        (64, 0.5),
        (67, 1 / 3),
        (REST, 0.25),
        (58, 2.0),
        (6, 2.5),
    ]


@pytest.mark.parametrize(
    ("text", "pitch"), [("C-1", 0), ("G9", 127), ("B#3", 60), ("Cb4", 59), ("A4", 69), ("E#4", 65), ("fb4", 64)]
)
def test_pitches_are_those_of_midi(text: str, pitch: int) -> None:
    assert parse_notes(f"{text}:1") == [(pitch, 1.0)]


def test_beats_become_milliseconds_at_a_tempo() -> None:
    line = line_of_notes(parse_notes("C4:1 -:1/2 E4:1 E4:1 G4:1/3"), 90)
    ends = [(667, 60), (1000, REST), (2333, 64), (2556, 67)]  # one E of two beats
    assert line == MelodyLine(tuple(LineNote(*note) for note in ends))
    assert line.seconds == 2.556


def test_many_short_notes_do_not_drift() -> None:
    assert line_of_notes(parse_notes("C4:1/3 D4:1/3 E4:1/3 " * 30), 60).seconds == 30.0


WRITTEN = {"fraction": "{numerator}/{denominator}", "decimal": "{value:.9f}"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(-1, 127), st.integers(1, 999), st.integers(1, 100)), min_size=1, max_size=9),
    st.sampled_from(sorted(WRITTEN)),
    st.sampled_from([" ", "\n", " \t "]),
)
def test_every_text_is_read_as_it_was_written(notes: list[tuple[int, int, int]], form: str, space: str) -> None:
    text = space.join(
        f"{name_of(pitch)}:{WRITTEN[form].format(numerator=over, denominator=under, value=over / under)}"
        for pitch, over, under in notes
    )
    if all(pitch == REST for pitch, *_ in notes):
        assert "at least one note" in outcome(text)
        return
    found = parse_notes(text)
    assert re.fullmatch(NOTES_PATTERN, text)
    assert [note.pitch for note in found] == [pitch for pitch, *_ in notes]
    assert [note.beats for note in found] == pytest.approx([over / under for _, over, under in notes], abs=1e-9)


def outcome(text: str) -> list[WrittenNote] | str:
    try:
        return parse_notes(text)
    except ValueError as error:
        return str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30) | st.text("CcGHb#-0123456789:./ ", max_size=30))
def test_any_other_text_is_refused_with_a_sentence(text: str) -> None:
    found = outcome(text)
    if isinstance(found, str):
        assert found.startswith("must ")
        assert found.isascii()
    else:
        assert all(note.beats > 0 for note in found)
        assert re.fullmatch(NOTES_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "at least one note"),
        ("   ", "at least one note"),
        ("-:1 -:2", "at least one note"),
        ("C4", "a colon"),
        ("C4:1 H4:1", "note 2 is 'H4:1'"),
        ("C:1", "pitches such as"),
        ("C##4:1", "pitches such as"),
        ("Cb-1:1", "from C-1 to G9"),
        ("G#9:1", "from C-1 to G9"),
        ("C10:1", "from C-1 to G9"),
        ("C4:0", "above 0"),
        ("C4:0.0", "above 0"),
        ("C4:1/0", "above 0"),
        ("C4:-1", "above 0"),
        ("C4:nan", "above 0"),
        ("C4:inf", "above 0"),
        ("C4:1e3", "above 0"),
        ("C4:1_0", "above 0"),
        ("C4:", "above 0"),
        ("C4:.", "above 0"),
        ("C4:1:2", "above 0"),
        ("C4:٣", "above 0"),
        ("C٤:1", "pitches such as"),
        ("C4:" + "9" * 5000, "note 1 is 'C4:999999999999999999999'"),
        ("\u202eC4:1", "pitches such as"),
    ],
)
def test_refusals_say_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match="must ") as caught:
        parse_notes(text)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 160


def test_a_text_of_the_greatest_length_has_a_bounded_cost() -> None:
    assert len(parse_notes("C4:1 " * (MAX_NOTES_CHARACTERS // 5))) == MAX_NOTES_CHARACTERS // 5
