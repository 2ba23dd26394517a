"""The parsers that are fuzzed, by name: each target takes bytes and raises if the parser breaks its promises.

A parser may raise only the errors that its documentation names. What it accepts must survive a round trip.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from itertools import pairwise

from flask import Flask, Response
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.test import EnvironBuilder

from audiocraft_api.audio import midi, mp3_header
from audiocraft_api.audio.notes import line_of_notes, parse_notes
from audiocraft_api.core.errors import InvalidRequest, UnsupportedMediaType
from audiocraft_api.core.melody_line import REST, MelodyLine
from audiocraft_api.generation.performance_recipe import performance_json, performance_of
from audiocraft_api.generation.recipe import Recipe
from audiocraft_api.web.blueprints.audio import ONE_RANGE, conditional
from audiocraft_api.web.live_steering import parse_message
from audiocraft_api.web.parsing import StrictRequest, parse_form, parse_json_text, parse_query, read_json_object
from audiocraft_api.web.schemas.forms import MelodyFields
from audiocraft_api.web.schemas.generation import GenerateRequest
from audiocraft_api.web.schemas.performance import PerformanceFields
from audiocraft_api.web.schemas.tasks import PageQuery

FILE = bytes(range(256)) * 4
MAX_SECONDS = 30.0

app = Flask(__name__)
app.request_class = StrictRequest


def multipart(data: bytes) -> None:
    """The first line is the Content-Type, the rest the body of a form."""
    head, _, body = data.partition(b"\n")
    environ = EnvironBuilder(method="POST", input_stream=io.BytesIO(body)).get_environ()
    environ |= {"CONTENT_TYPE": head.decode("latin-1"), "CONTENT_LENGTH": str(len(body))}
    with app.request_context(environ):
        try:
            fields = parse_form(MelodyFields, "melody", "No melody file provided", "notes")
        except (InvalidRequest, UnsupportedMediaType) as error:
            check_sentence(error)
            return
        if fields.melody is not None:
            assert fields.melody.stream.read() in body


def json_text(data: bytes) -> None:
    """The body of `POST /generate`."""
    environ = EnvironBuilder(method="POST", data=data, content_type="application/json").get_environ()
    with app.request_context(environ):
        try:
            fields = read_json_object(max_bytes=2**20)
        except InvalidRequest as error:
            check_sentence(error)
            return
    assert json.loads(data.decode("utf-8-sig")) == fields
    try:
        found = parse_json_text(GenerateRequest, data.decode("utf-8-sig"))
    except InvalidRequest as error:
        check_sentence(error)
        return
    again = parse_json_text(GenerateRequest, found.model_dump_json(exclude_unset=True))
    assert again == found


def query(data: bytes) -> None:
    """The query of `GET /tasks`."""
    with app.test_request_context(query_string=data.decode("latin-1")):
        try:
            parse_query(PageQuery)
        except InvalidRequest as error:
            check_sentence(error)


def ranges(data: bytes) -> None:
    """A Range header: the response is the whole file, or exactly the part that it announces, or 416."""
    header = data.decode("latin-1").strip("\r\n")
    environ = EnvironBuilder(headers={"X": "y"}).get_environ() | {"HTTP_RANGE": header}
    with app.request_context(environ):
        response = Response(io.BytesIO(FILE))
        try:
            conditional(response, io.BytesIO(FILE), len(FILE))
        except RequestedRangeNotSatisfiable:
            assert ONE_RANGE.fullmatch(header)
            return
        response.direct_passthrough = False
        body = response.get_data()
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers["Content-Range"])
        assert found is not None
        first, last, size = map(int, found.groups())
        assert size == len(FILE)
        assert body == FILE[first : last + 1]
        assert response.content_length == len(body)
    else:
        assert response.status_code == 200
        assert body == FILE


def mp3(data: bytes) -> None:
    """The header of a frame, then a number of samples."""
    num_samples = int.from_bytes(data[4:8], "big")
    frame = mp3_header.length_frame(data[:4], num_samples)
    if not frame:
        return
    assert frame[:2] == b"\xff\xfb"
    assert mp3_header.MIN_FRAME_BYTES <= len(frame) <= 2 * mp3_header.MIN_FRAME_BYTES
    at = frame.index(b"Xing")
    num_frames = int.from_bytes(frame[at + 8 : at + 12], "big")
    delay_and_padding = int.from_bytes(frame[at + 33 : at + 36], "big")
    delay, padding = delay_and_padding >> 12, delay_and_padding & 0xFFF
    assert num_frames * mp3_header.FRAME_SAMPLES == delay + num_samples + padding


def midi_file(data: bytes) -> None:
    """A MIDI file in place of a melody, without the first four bytes, by which it is recognized."""
    try:
        line = midi.read_top_line(midi.MAGIC + data, max_events=2000, max_seconds=MAX_SECONDS)
    except midi.MidiError as error:
        check_sentence(error)
        return
    check_line(line)
    assert line.seconds <= MAX_SECONDS


def notes(data: bytes) -> None:
    """A tempo, then a melody as text."""
    try:
        written = parse_notes(data[1:].decode("utf-8", "replace"))
    except ValueError as error:
        check_sentence(error)
        return
    again = " ".join(f"{name_of_pitch(note.pitch)}:1" for note in written)
    assert [note.pitch for note in parse_notes(again)] == [note.pitch for note in written]
    check_line(line_of_notes(written, 30 + data[0]))


def name_of_pitch(pitch: int) -> str:
    names = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
    return "-" if pitch == REST else f"{names[pitch % 12]}{pitch // 12 - 1}"


def check_line(line: MelodyLine) -> None:
    """Check that notes follow each other without gaps, that neighbors differ, and that pitches are MIDI's."""
    ends = [0, *(note.end_ms for note in line.notes)]
    assert all(end > start for start, end in pairwise(ends))
    assert all(one.pitch != two.pitch for one, two in pairwise(line.notes))
    assert all(note.pitch == REST or 0 <= note.pitch <= 127 for note in line.notes)


def recipe(data: bytes) -> None:
    """The recipe of a stored file, as JSON: what it says survives a round trip, and its tags are one line."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return
    details = fields if isinstance(fields, dict) else {"prompt": str(fields)}
    made = Recipe("wav", 32_000, 1.0, 0.5, 7, "demo", "abc", details=details)
    text = json.dumps(made.to_dict())
    assert json.dumps(Recipe.from_dict(json.loads(text)).to_dict()) == text
    comment = made.tags().comment
    assert comment.isprintable()
    said = json.loads(comment)
    for name, value in details.items():
        if name not in ("created", "digital_source_type"):
            assert json.dumps(said[name]) == json.dumps(value)
    assert "prompt" not in json.loads(made.tags(with_prompt=False).comment)


def performance(data: bytes) -> None:
    """A performance that a client edited and sends back."""
    try:
        found = parse_json_text(PerformanceFields, data.decode("utf-8", "replace"))
    except InvalidRequest as error:
        check_sentence(error)
        return
    made = performance_of(found.model_dump())
    assert made.num_frames == found.frames
    assert [change.frame for change in made.changes] == [change.frame for change in found.changes]
    assert performance_of(json.loads(json.dumps(performance_json(made)))) == made
    for change in made.changes:
        total = sum(weight for _, weight in change.controls.blends.conditional)
        assert abs(total - 1) < 1e-6


def live_message(data: bytes) -> None:
    """A message of a client to its live session."""
    try:
        message = parse_message(data.decode("utf-8", "replace"))
    except InvalidRequest as error:
        check_sentence(error)
        return
    assert parse_message(message.model_dump_json(exclude_unset=True)) == message


def check_sentence(error: Exception) -> None:
    """Check that the error can be sent: a sentence in UTF-8 that ends, of bounded length."""
    sentence = str(error)
    assert sentence.encode()
    assert len(sentence) < 10_000
    json.dumps(getattr(error, "errors", None)).encode()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "multipart": multipart,
    "json": json_text,
    "query": query,
    "ranges": ranges,
    "mp3": mp3,
    "midi": midi_file,
    "notes": notes,
    "recipe": recipe,
    "performance": performance,
    "live_message": live_message,
}
