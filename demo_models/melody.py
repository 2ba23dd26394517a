"""Training data of the melody model: melodies, their chroma, and leads that follow it.

Audiocraft's extractor reduces a recording to chroma: for each place of the prefix, the pitch class that is loudest. The
lead follows the chroma on a grid of sixteenth notes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from audiocraft_api.core.melody_line import REST, MelodyLine, line_of
from audiocraft_api.model.line_chroma import line_chroma
from demo_models.alignment import attention_at_steps
from demo_models.composer import Codes, Facts, bar_frames, compose, draw_facts, lead_pitch, notes_of, successors_of
from demo_models.dimensions import HOP, NUM_CLASSES, NUM_PLACES, SECONDS, WINDOW
from demo_models.grooves import CONTOURS, GROOVES
from demo_models.harmony import KEYS, chord_of
from demo_models.score import FRAME_RATE, LEAD_PITCHES, PARTS, SAMPLE_RATE, SILENCE

Classes = NDArray[np.int64]  # [NUM_PLACES]: the pitch class at each place

_HYSTERESIS = 0.2  # how much more attention than the current pitch class a new one needs
_FIRST_PITCH = 69
FOLLOWS = -1  # in place of a code: the lead follows the melody
_WALK_STEPS = {-4: 0.05, -3: 0.07, -2: 0.13, -1: 0.25, 1: 0.25, 2: 0.13, 3: 0.07, 4: 0.05}  # of a scale, and how often


def compose_with_melody(
    rng: np.random.Generator, facts: Facts, num_bars: int, astray: float = 0.0
) -> tuple[Codes, Facts, Classes, NDArray[np.bool_]]:
    """Return the codes [4, T] of a piece whose lead follows a melody, its facts, and the melody's pitch classes.

    The key of the piece is the one of its mode that fits the melody best. In a share `astray` of the bars, the lead
    plays a tune of its own. The last array [T] is true in the frames of these bars.
    """
    classes = _misheard(rng, heard(draw_line(rng, facts.tempo)))
    facts = replace(facts, key=best_key(classes, facts.mode))
    codes = compose(rng, facts, num_bars)
    is_astray = np.repeat(rng.random(num_bars) < astray if astray else np.zeros(num_bars, bool), bar_frames(facts))
    codes[3] = follow(classes, facts, np.where(is_astray, codes[3], FOLLOWS))
    return codes, facts, classes, is_astray


def best_key(classes: Classes, mode: str) -> int:
    """Return the key of a mode whose scale has most of the pitch classes."""
    counts = np.bincount(classes, minlength=NUM_CLASSES)
    same_mode = [i for i, key in enumerate(KEYS) if key.mode == mode]
    return max(same_mode, key=lambda i: sum(counts[c] for c in KEYS[i].scale))


def follow(classes: Classes, facts: Facts, given: Codes) -> Codes:
    """Return the codes [T] of a lead that follows a melody where `given` [T] is FOLLOWS, and equals `given` elsewhere.

    At each sixteenth note, the lead starts the melody's pitch class unless it is playing it already. It repeats a note
    that would end before the next sixteenth note.
    """
    row = np.empty(len(given), np.int64)
    seen = attention_at_steps(facts.tempo, len(given)) @ np.eye(NUM_CLASSES)[classes]
    pitch, code = _FIRST_PITCH, SILENCE
    for t in range(len(given)):
        if given[t] != FOLLOWS:
            code = int(given[t])
            pitch = pitch if code == SILENCE else int(PARTS[3].codes[code].item)  # type: ignore[call-overload]
        elif t % facts.tempo == 0:
            scores = seen[t // facts.tempo]
            wanted, playing = int(scores.argmax()), pitch % NUM_CLASSES
            changes = scores[wanted] > scores[playing] + _HYSTERESIS or t == 0
            if changes or successors_of(3, code)[facts.tempo - 1] == SILENCE:
                pitch = _nearest(pitch, wanted if changes else playing)
                code = PARTS[3].onset(facts.lead, pitch)
        row[t] = code
        code = int(PARTS[3].successor[code])
    return row


def _nearest(pitch: int, pitch_class: int) -> int:
    """Return the lead's pitch of a pitch class that is nearest to `pitch`, or the lower one of two."""
    return min((p for p in LEAD_PITCHES if p % NUM_CLASSES == pitch_class), key=lambda p: (abs(p - pitch), p))


def heard(line: MelodyLine, seconds: float = SECONDS) -> Classes:
    """Return the pitch classes of the first `seconds` of a line, one for each place."""
    chroma = line_chroma(line, sample_rate=SAMPLE_RATE, hop=HOP, window=WINDOW, seconds=seconds)
    classes: Classes = chroma.argmax(1)
    return classes


def _misheard(rng: np.random.Generator, classes: Classes) -> Classes:
    """Return classes with a few errors, like those that the extractor makes with overtones and chords."""
    classes = classes.copy()
    for _ in range(rng.integers(40) if rng.random() < 0.5 else 0):
        begin = rng.integers(NUM_PLACES)
        classes[begin : begin + rng.integers(1, 4)] = rng.integers(NUM_CLASSES)
    return classes


def draw_line(rng: np.random.Generator, tempo: int) -> MelodyLine:
    """Draw a melody: the lead of another piece, or a random walk through a scale with or without a tempo."""
    kind = rng.random()
    if kind < 0.4:
        return _composed(rng, tempo)
    return _walk(rng, tempo if kind < 0.75 else 0)


def _composed(rng: np.random.Generator, tempo: int) -> MelodyLine:
    """Return the lead of another piece, perhaps transposed."""
    facts = replace(draw_facts(rng), tempo=tempo)
    groove, contour = GROOVES[facts.groove], CONTOURS[rng.integers(len(CONTOURS))]
    transposed = int(rng.integers(NUM_CLASSES)) if rng.random() < 0.5 else 0
    line, end = [], 0
    while end < SECONDS * FRAME_RATE:
        bar = end // (len(groove.chords) * tempo)
        kind = (0, 1, 0, 2)[bar % 4]
        for step, length, _ in notes_of(groove.lead[kind]):
            chord = chord_of(facts.key, facts.loop, bar % 4)
            pitch = lead_pitch(KEYS[facts.key], chord, contour[kind][step // 2]) + transposed
            begin = (bar * len(groove.chords) + step) * tempo
            line += [(REST, begin / FRAME_RATE), (pitch, (begin + length * tempo) / FRAME_RATE)]
        end = (bar + 1) * len(groove.chords) * tempo
        line.append((REST, end / FRAME_RATE))
    return line_of(line)


def _walk(rng: np.random.Generator, step: int) -> MelodyLine:
    """Return a random walk through a scale. Lengths are multiples of `step` frames, or arbitrary if `step` is 0."""
    scale = KEYS[rng.integers(len(KEYS))].scale if rng.random() < 0.8 else frozenset(range(NUM_CLASSES))
    pitches = [p for p in LEAD_PITCHES if p % NUM_CLASSES in scale]
    at, line, end = int(rng.integers(len(pitches))), [], 0
    shortest = rng.choice((0.2, 0.4))  # seconds
    while end < SECONDS * FRAME_RATE:
        frames = FRAME_RATE * min(shortest * np.exp(rng.exponential(0.5)), 3.0)
        end += max(1, round(frames / step)) * step if step else round(frames)
        line.append((pitches[at], end / FRAME_RATE))
        at = int(np.clip(at + rng.choice(list(_WALK_STEPS), p=list(_WALK_STEPS.values())), 0, len(pitches) - 1))
    return line_of(line)
