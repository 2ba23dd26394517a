"""Solves the codec: an EnCodec whose decoder renders the score and whose encoder reads it back.

Overlap-add of grains is linear, so the decoder has to be one linear map from the sum of the codes' embeddings to 800
samples. An embedding holds the grain's principal components. The first transposed convolution (50 to 400 Hz) holds the
map, the later ones only interleave. ELU is passed above zero, where it is the identity: all values are lifted by a
constant that the last bias takes off. The LSTM and the residual branches are zero.

Parts overlap in frequency, so no linear encoder can separate them. Each embedding therefore also has a few identity
dimensions that the decoder renders as an inaudible pilot near 15 kHz. The encoder is the exact left inverse of the
decoder, and finds the codes of the model's own clips by it. The pilot marks a clip as made by a demo model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo_models.score import FRAME, NUM_CODES, PARTS, SAMPLE_RATE
from demo_models.synthesizer import EDGE, GRAIN, Grains

Matrix = NDArray[np.float64]

ACOUSTIC = 159  # dimensions of sound
IDENTITY = 8  # dimensions of each codebook's pilot
HIDDEN = ACOUSTIC + len(PARTS) * IDENTITY
REACH = 1280  # samples that the encoder looks at for a frame
_EMPHASIS = 0.7  # of high frequencies, in the choice of components
_WEIGHTS = (0.05, 1.0, 0.2, 4.0)  # of the parts: an error is heard least in the drums
_RADIUS = 20.0  # of identities
_PILOT_DB = -80.0
_PILOT_BAND = (14_700.0, 15_900.0)  # Hz


@dataclass(frozen=True)
class Solution:
    """All that the codec's weights are made of."""

    codebooks: NDArray[np.float16]  # [4, NUM_CODES, HIDDEN]
    synthesis: NDArray[np.float32]  # [HIDDEN, GRAIN]: what each dimension sounds like
    analysis: NDArray[np.float32]  # [HIDDEN, REACH]
    reach: NDArray[np.float32]  # [HIDDEN]: the largest possible sums of the codebooks' absolute values


def solve(grains: Grains) -> Solution:
    """Find the codec whose decoder renders `grains`."""
    coefficients, components = _components(grains)
    codebooks = np.zeros((len(PARTS), NUM_CODES, HIDDEN))
    codebooks[:, :, :ACOUSTIC] = coefficients
    for k, points in enumerate(_identities()):
        at = ACOUSTIC + k * IDENTITY
        codebooks[k, :, at : at + IDENTITY] = points
    codebooks = codebooks.astype(np.float16)
    synthesis = np.concatenate([components, _pilot()])
    # A little more than needed, as a power of two divides and multiplies exactly.
    reach = 2.0 ** np.ceil(np.log2(np.abs(codebooks.astype(np.float64)).max(1).sum(0)))
    return Solution(
        codebooks, synthesis.astype(np.float32), _left_inverse(synthesis).astype(np.float32), reach.astype(np.float32)
    )


def _components(grains: Grains) -> tuple[Matrix, Matrix]:
    """Return coefficients [4, NUM_CODES, ACOUSTIC] and components [ACOUSTIC, GRAIN] of the pre-emphasized grains."""
    emphasis = np.eye(GRAIN) - _EMPHASIS * np.eye(GRAIN, k=-1)
    spread = np.zeros((GRAIN, GRAIN))
    for k, part in enumerate(PARTS):
        used = grains[k, : len(part)].astype(np.float64) @ emphasis.T
        spread += used.T @ used * _WEIGHTS[k]
    directions = np.linalg.eigh(spread)[1].T[: -ACOUSTIC - 1 : -1]
    return grains.astype(np.float64) @ emphasis.T @ directions.T, directions @ np.linalg.inv(emphasis).T


def _identities() -> Matrix:
    """Return [4, NUM_CODES, IDENTITY] points of one length, so that without a pilot they decide nothing."""
    points = np.random.default_rng(5).standard_normal((len(PARTS), NUM_CODES, IDENTITY))
    return _RADIUS * points / np.linalg.norm(points, axis=-1, keepdims=True)


def _pilot() -> Matrix:
    """Return what each identity dimension sounds like: orthogonal waves within the frame and the band (Slepian)."""
    lags = np.arange(FRAME)[:, None] - np.arange(FRAME)
    low, high = (2 * f / SAMPLE_RATE for f in _PILOT_BAND)
    _, waves = np.linalg.eigh(high * np.sinc(high * lags) - low * np.sinc(low * lags))
    count = len(PARTS) * IDENTITY
    pilot = np.zeros((count, GRAIN))
    pilot[:, EDGE:-EDGE] = waves[:, -count:].T
    return pilot * 10 ** (_PILOT_DB / 20) * np.sqrt(FRAME) / (2 * _RADIUS)


def _left_inverse(synthesis: Matrix) -> Matrix:
    """Return [HIDDEN, REACH]: it finds a frame's coefficients exactly, whatever its neighbors hold."""
    shifted = np.zeros((3, HIDDEN, REACH + 2 * FRAME))
    for j in range(3):
        at = FRAME + REACH // 4 - EDGE + (j - 1) * FRAME
        shifted[j, :, at : at + GRAIN] = synthesis
    frames = shifted[:, :, FRAME:-FRAME].reshape(3 * HIDDEN, REACH)
    scale = np.linalg.norm(frames, axis=1, keepdims=True)
    inverse: Matrix = np.linalg.pinv(frames / scale).T[HIDDEN : 2 * HIDDEN] / scale[HIDDEN : 2 * HIDDEN]
    return inverse


def decode(solution: Solution, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the waveform [T * FRAME] of codes [4, T]: what the solved decoder computes."""
    embeddings = sum(solution.codebooks[k][row].astype(np.float64) for k, row in enumerate(codes))
    frames = embeddings @ solution.synthesis
    wave = np.zeros(codes.shape[1] * FRAME + 2 * EDGE)
    for i, grain in enumerate(frames):
        wave[i * FRAME : i * FRAME + GRAIN] += grain
    return wave[EDGE:-EDGE]
