"""Solves the codec: an EnCodec whose decoder renders the score and whose encoder reads it back.

Overlap-add of grains is linear, so the decoder has to be one linear map from the sum of the codes' embeddings to 800
samples. An embedding holds the grain's principal components. The first transposed convolution (50 to 400 Hz) holds the
map, the later ones only interleave. ELU is passed above zero, where it is the identity: all values are lifted by a
constant that the last bias takes off. The last residual branch is a soft limiter. The LSTM and the other branches are
zero.

The encoder hears only the pilot (`pilot`), which the decoder adds to the sound. Its last ELU also works below zero,
where it is constant: so the encoder hears whether a sound is foreign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiocraft_api.model.demo_codec import LIMIT, LIMIT_SHARPNESS, LIMIT_SLOPE
from demo_models import pilot
from demo_models.score import FRAME, PARTS
from demo_models.synthesizer import EDGE, GRAIN, Grains

Matrix = NDArray[np.float64]

ACOUSTIC = 158  # dimensions of sound
HEARD = ACOUSTIC + pilot.WIDTH  # dimensions that the decoder renders; one more is the alarm
_EMPHASIS = 0.7  # of high frequencies, in the choice of components
_WEIGHTS = (0.05, 1.0, 0.2, 4.0)  # of the parts: an error is heard least in the drums


@dataclass(frozen=True)
class Solution:
    """All that the codec's weights are made of."""

    codebooks: NDArray[np.float16]  # [4, NUM_CODES, HEARD + 1]
    synthesis: NDArray[np.float32]  # [HEARD, GRAIN]: what each dimension sounds like
    reach: NDArray[np.float32]  # [HEARD]: the largest possible sums of the codebooks' absolute values
    identify: NDArray[np.float32]  # [pilot.WIDTH, FRAME]: finds the last dimensions of what the decoder renders
    guards: NDArray[np.float32]  # [n, FRAME]: hear what is foreign
    thresholds: NDArray[np.float32]  # [n]: what a guard must hear to count
    alarm: NDArray[np.float32]  # [2]: what a guard adds to the last dimension, and its value when all is quiet


def solve(grains: Grains) -> Solution:
    """Find the codec whose decoder renders `grains`."""
    coefficients, components = _components(grains)
    codebooks = np.concatenate([coefficients, pilot.words()], -1).astype(np.float16)
    waves = np.zeros((pilot.WIDTH, GRAIN))
    waves[:, EDGE:-EDGE] = pilot.waves()
    synthesis = np.concatenate([components, waves])
    # A little more than needed, as a power of two divides and multiplies exactly.
    largest = np.abs(codebooks[:, :, :HEARD].astype(np.float64)).max(1).sum(0)
    hearing = pilot.hearing(_frames(codebooks[:, :, :ACOUSTIC].astype(np.float64) @ components))
    arrays = (synthesis, 2.0 ** np.ceil(np.log2(largest)), *hearing, pilot.alarm())
    return Solution(codebooks, *(array.astype(np.float32) for array in arrays))


def _components(grains: Grains) -> tuple[Matrix, Matrix]:
    """Return coefficients [4, NUM_CODES, ACOUSTIC] and components [ACOUSTIC, GRAIN] of the pre-emphasized grains."""
    emphasis = np.eye(GRAIN) - _EMPHASIS * np.eye(GRAIN, k=-1)
    spread = np.zeros((GRAIN, GRAIN))
    for k, part in enumerate(PARTS):
        used = grains[k, : len(part)].astype(np.float64) @ emphasis.T
        spread += used.T @ used * _WEIGHTS[k]
    directions = np.linalg.eigh(spread)[1].T[: -ACOUSTIC - 1 : -1]
    return grains.astype(np.float64) @ emphasis.T @ directions.T, directions @ np.linalg.inv(emphasis).T


def _frames(grains: Matrix) -> Matrix:
    """Return what a frame contains of the grains [4, NUM_CODES, GRAIN] that begin in it or in a frame next to it."""
    used = np.concatenate([grains[k, : len(part)] for k, part in enumerate(PARTS)])
    frames = np.zeros((3, len(used), FRAME))
    frames[0] = used[:, EDGE:-EDGE]
    frames[1, :, :EDGE] = used[:, -EDGE:]
    frames[2, :, -EDGE:] = used[:, :EDGE]
    # The mean over all frames is then the sum over the parts and the three places.
    return frames.reshape(-1, FRAME) * np.sqrt(3 * len(PARTS))


def decode(solution: Solution, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the waveform [T * FRAME] of codes [4, T]: what the solved decoder computes."""
    embeddings = sum(solution.codebooks[k][row].astype(np.float64) for k, row in enumerate(codes))
    frames = embeddings[:, :HEARD] @ solution.synthesis
    wave = np.zeros(codes.shape[1] * FRAME + 2 * EDGE)
    for i, grain in enumerate(frames):
        wave[i * FRAME : i * FRAME + GRAIN] += grain
    return limit(wave[EDGE:-EDGE])


def limit(wave: Matrix) -> Matrix:
    """Return a waveform whose samples beyond the limit are nearer to it."""

    def beyond(samples: Matrix) -> Matrix:  # what an ELU passes
        x = LIMIT_SHARPNESS * (samples - LIMIT)
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    return wave - (1 - LIMIT_SLOPE) / LIMIT_SHARPNESS * (beyond(wave) - beyond(-wave))


def encode(solution: Solution, wave: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the codes [4, T] of a waveform [T * FRAME]: what the solved encoder and quantizer find."""
    frames = wave.astype(np.float64).reshape(-1, FRAME)
    residual = np.zeros((len(frames), HEARD + 1))
    residual[:, ACOUSTIC:HEARD] = frames @ solution.identify.T
    heard = frames @ solution.guards.T - solution.thresholds
    each, rest = solution.alarm
    residual[:, HEARD] = rest + each * np.where(heard > 0, heard + 1, np.exp(np.minimum(heard, 0))).sum(1)
    codes = []
    for codebook in solution.codebooks.astype(np.float64):
        codes.append((2 * residual @ codebook.T - np.square(codebook).sum(1)).argmax(1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes)
