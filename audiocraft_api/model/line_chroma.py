"""Writes a melody line as the chroma that audiocraft's extractor would find in a recording of it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from audiocraft_api.core.melody_line import REST, MelodyLine

NUM_PITCH_CLASSES = 12
SILENCE = 0  # C: the extractor takes the first of twelve equal bins
_WEIGHT_SCALE = 2**20  # weights are whole numbers, so that equal sums are equal


def line_chroma(
    line: MelodyLine, *, sample_rate: int, hop: int, window: int, begin_seconds: float = 0.0, seconds: float
) -> npt.NDArray[np.float32]:
    """Return the one-hot chroma [T, 12] of `seconds` of a line that repeats, from `begin_seconds` on.

    As in audiocraft's `ChromaExtractor`, frame t is centered at sample `t * hop`, a squared Hann window weighs what
    sounds around it, and the sound is reflected at both ends. The pitch class that sounds most gets the frame. So a
    rest that is shorter than the window reads as the notes beside it, and a longer one as silence.
    """
    num_samples = max(round(seconds * sample_rate), window)
    per_sample = 1000 / sample_rate
    num_points = round(window * per_sample)  # one per millisecond
    offsets = (np.arange(num_points) + 0.5) * (window * per_sample / num_points) - window * per_sample / 2
    weights = np.round(_WEIGHT_SCALE * np.cos(math.pi * offsets / (window * per_sample)) ** 4)
    centers = np.arange(num_samples // hop + 1) * (hop * per_sample)
    times = np.abs(centers[:, None] + offsets)  # [T, points]
    times = seconds * 1000 - np.abs(seconds * 1000 - times)
    ends = np.array([note.end_ms for note in line.notes])
    bins = np.array([NUM_PITCH_CLASSES if note.pitch == REST else note.pitch % 12 for note in line.notes])
    found = bins[np.searchsorted(ends, (begin_seconds * 1000 + times) % ends[-1], side="right")]
    cells = found + np.arange(len(centers))[:, None] * (NUM_PITCH_CLASSES + 1)
    sums = np.bincount(
        cells.ravel(),
        np.broadcast_to(weights, cells.shape).ravel(),
        minlength=len(centers) * (NUM_PITCH_CLASSES + 1),
    ).reshape(len(centers), -1)[:, :NUM_PITCH_CLASSES]
    return np.eye(NUM_PITCH_CLASSES, dtype=np.float32)[sums.argmax(axis=1)]
