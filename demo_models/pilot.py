"""The pilot: an inaudible signal by which the codec's encoder finds the codes of the demo models' own clips.

Parts overlap in frequency, so no linear encoder can tell them apart by their sound. Each code therefore also has a word
of twelve bits, and the decoder adds them up as signs of waves near 14 kHz. Any two words of a part differ in two bits,
which LAME at 192 kbit/s preserves. Silent codes have no word.

Foreign sound has no words, but it has energy where the waves are. So the encoder also listens to what own clips never
contain there: waves of the same frequencies that no code uses. The more it hears, the more it prefers silence. A clip
that is cut off the frame grid has much of its pilot in such waves, and is heard as silence as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from demo_models.score import FRAME, NUM_CODES, PARTS, SAMPLE_RATE, SILENCE

Matrix = NDArray[np.float64]

BITS = 12
WIDTH = len(PARTS) * BITS + 1  # dimensions; the last is the same for all drums, and tells a pilot from its negation
RADIUS = 32.0  # of words: far more than the norm of a grain's components, so that those decide nothing
NO_DRUMS = NUM_CODES - 1  # an unused code, which the encoder takes for the drums of what it does not know
_LEVEL_DB = -65.0  # of the pilot when all parts play
_BAND = (12_600.0, 15_000.0)  # Hz. LAME keeps nothing above 15.2 kHz; below, cymbals begin.
_WAVES = 88  # orthogonal waves within the frame and the band
_GUARDS = 64
_LSB = 1 / 32_768

# What a guard must hear to count, in units of the noise of an own clip. It hears about 1 there, less than 20 in most
# frames of an MP3 file at 192 kbit/s, and 30 in a clip off the frame grid.
_THRESHOLD = 20.0
# The alarm, in units of RADIUS**2: the lead of silence over a code of which nothing is heard, what a mean of 1 in all
# guards adds, and what the absence of a pilot adds at least.
_REST, _ALARM, _ABSENCE = 0.5, 0.5, 1.0
_FAINT = 0.3  # share of the pilot below which it is absent
_STEP = 0.1  # the alarm's coordinate of silent codes, in units of RADIUS


def words() -> Matrix:
    """Return points [4, NUM_CODES, WIDTH + 1]: the words, and in the last dimension the coordinate of the alarm."""
    points = np.zeros((len(PARTS), NUM_CODES, WIDTH + 1))
    bits = (np.arange(NUM_CODES)[:, None] >> np.arange(BITS - 1)) & 1
    bits = np.concatenate([bits, bits.sum(1, keepdims=True) % 2], 1)
    for k, part in enumerate(PARTS):
        points[k, :, k * BITS : (k + 1) * BITS] = (1 - 2 * bits) * RADIUS / np.sqrt(BITS)
        points[k, len(part) :] = 0
        points[k, len(part) :, -1] = -16 * RADIUS  # unused: never the nearest
        silence = SILENCE if k else NO_DRUMS
        points[k, silence] = 0
        points[k, silence, -1] = _STEP * RADIUS
    points[0, : len(PARTS[0]), WIDTH - 1] = RADIUS / np.sqrt(BITS)
    return points


def _basis() -> Matrix:
    """Return [_WAVES, FRAME]: the orthonormal waves with the most energy in the band (Slepian)."""
    lags = np.arange(FRAME)[:, None] - np.arange(FRAME)
    low, high = (2 * f / SAMPLE_RATE for f in _BAND)
    _, waves = np.linalg.eigh(high * np.sinc(high * lags) - low * np.sinc(low * lags))
    found: Matrix = waves[:, : -_WAVES - 1 : -1].T
    return found


def _mixing() -> Matrix:
    """Return [WIDTH, _WAVES]: how each dimension mixes the basis. A shift in time changes every mixture."""
    mixture: Matrix = np.linalg.qr(np.random.default_rng(5).standard_normal((_WAVES, _WAVES)))[0][:WIDTH]
    return mixture


def waves() -> Matrix:
    """Return [WIDTH, FRAME]: what each dimension sounds like."""
    scale = 10 ** (_LEVEL_DB / 20) * np.sqrt(FRAME) / (np.sqrt(len(PARTS)) * RADIUS)
    return _mixing() @ _basis() * scale


def hearing(sounds: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return `identify` [WIDTH, FRAME], which finds the words in a frame, and guards [n, FRAME] with thresholds [n].

    `sounds` [m, FRAME] are frames of sound without a pilot. They and the rounding to 16 bits are noise, of which
    `identify` passes as little as a linear map can, and of which a guard passes a standard deviation of 1. The last
    guard hears that the pilot is absent or negated.
    """
    basis = _basis()
    inside = sounds @ basis.T
    noise = inside.T @ inside / len(sounds) + np.eye(_WAVES) * _LSB**2
    values, vectors = np.linalg.eigh(noise)
    whiten = vectors / np.sqrt(values) @ vectors.T
    signal = whiten @ basis @ waves().T
    identify = np.linalg.pinv(signal) @ whiten
    unused = np.linalg.svd(signal)[0][:, WIDTH:]
    mixture = np.random.default_rng(6).standard_normal((_GUARDS, unused.shape[1]))
    guards = mixture / np.linalg.norm(mixture, axis=1, keepdims=True) @ unused.T @ whiten
    alone = _ABSENCE * (_GUARDS + 1) / _ALARM / _FAINT  # for a pilot that is negated fully
    absence = -identify[-1:] * alone * np.sqrt(BITS) / RADIUS
    thresholds = np.append(np.full(_GUARDS, _THRESHOLD), -_FAINT * alone)
    return identify @ basis, np.concatenate([guards, absence]) @ basis, thresholds


def alarm() -> Matrix:
    """Return [2]: what each guard adds to the coordinate of the alarm, and its value when all is quiet."""
    unit = RADIUS / (2 * _STEP)
    return np.array([_ALARM * unit / (_GUARDS + 1), -_REST * unit])
