"""Stereo pieces: codes [8, T] from codes [4, T], left and right in turn.

MusicGen draws both sides of a part in the same step, so neither can depend on what the other one draws in that frame.
In each part one side leads, and the other follows a rule that needs only the leader's past. Chords and lead follow one
frame later, which sounds wide: the chords come from the right and the lead from the left. Drums and bass are the same
on both sides, so that they stay in the middle; their follower is silent in the first frame.
"""

from __future__ import annotations

import numpy as np

from demo_models.composer import Codes
from demo_models.score import NUM_CODES, SILENCE

LEADERS = (0, 1, 0, 0)  # the side that leads in each part
_LATER = (False, True, False, True)
_SILENT = (NUM_CODES - 1, SILENCE, SILENCE, SILENCE)  # the drums have no code of silence; the last one is unused


def widen(codes: Codes) -> Codes:
    """Return codes [8, T] for codes [4, T]."""
    wide = np.repeat(codes, 2, axis=0)
    for k, leader in enumerate(LEADERS):
        follower = wide[2 * k + 1 - leader]
        if _LATER[k]:
            follower[1:] = codes[k, :-1]
        follower[0] = _SILENT[k]
    return wide


def leaders(wide: Codes) -> Codes:
    """Return the codes [4, T] of the leading sides."""
    return wide[[2 * k + leader for k, leader in enumerate(LEADERS)]]


def following(wide: Codes) -> float:
    """Return the share of frames in which the followers keep their rules."""
    return float((wide[:, 1:] == widen(leaders(wide))[:, 1:]).mean())
