"""Sizes of the language models, and of the prefix by which the melody model sees a melody."""

from __future__ import annotations

DIM, NUM_HEADS, NUM_LAYERS = 128, 4, 4
NUM_CLASSES = 12  # pitch classes
RATE = 8  # see `alignment`
SECONDS = 30  # of the melody that is seen, and of a piece
HOP = 2061  # samples: a frame's 640 samples by 10000 ** (-RATE / 63)
NUM_PLACES = SECONDS * 32_000 // HOP + 1
WINDOW = 2**14  # samples in which the extractor listens
