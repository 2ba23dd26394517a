"""A live performance: its controls, the frames at which they changed, and what they mean at each frame.

The list of changes is the recipe of the performance. Everything below is a function of it alone, so that a performance
can be generated again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from audiocraft_api.core.constants import DEFAULT_CFG_COEF, DEFAULT_TOP_K

MAX_LIVE_PROMPTS = 4
# A transition changes the weights this often. Each time, the weights of a row are written to its slots.
TRANSITION_STEP_FRAMES = 5

Blend = tuple[tuple[str, float], ...]  # texts, and the weights of their attention outputs


class WeightedPrompt(NamedTuple):
    """A text with a weight other than 0. The music is led away from texts with a negative weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Controls:
    """What a performance can change while it is generated."""

    prompts: tuple[WeightedPrompt, ...]  # at least one has a positive weight
    temperature: float = 1.0
    top_k: int = DEFAULT_TOP_K
    top_p: float = 0.0
    cfg_coef: float = DEFAULT_CFG_COEF

    @property
    def blends(self) -> Blends:
        """The texts of both rows, with weights.

        The weights of the conditional row add up to 1. Those of the unconditional row are relative to the same total,
        and add up to 1 at most: what is missing stands for no text, whose attention output is zero.
        """
        total = sum(prompt.weight for prompt in self.prompts if prompt.weight > 0)
        negative = max(total, -sum(prompt.weight for prompt in self.prompts if prompt.weight < 0))
        return Blends(
            tuple((prompt.text, prompt.weight / total) for prompt in self.prompts if prompt.weight > 0),
            tuple((prompt.text, -prompt.weight / negative) for prompt in self.prompts if prompt.weight < 0),
        )


class Blends(NamedTuple):
    """What the conditional and the unconditional row attend to."""

    conditional: Blend
    unconditional: Blend

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, each once."""
        return tuple(dict.fromkeys(text for blend in self for text, _ in blend))


@dataclass(frozen=True)
class Change:
    """The controls from `frame` on. `transition_frames` is how long the change of prompts takes.

    With `resets_context`, the model forgets the music before the frame.
    """

    frame: int
    controls: Controls
    transition_frames: int = 0
    resets_context: bool = False


@dataclass(frozen=True)
class Performance:
    """All changes of a performance, by ascending frame and the first one at frame 0, and its length."""

    changes: tuple[Change, ...]
    num_frames: int


class Timeline:
    """The controls of each frame, while changes are added. Frames must be asked for in ascending order."""

    def __init__(self, first: Change) -> None:
        self.changes = [first]
        self._from = self._to = first.controls.blends

    @property
    def controls(self) -> Controls:
        """The controls after the last change."""
        return self.changes[-1].controls

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of all frames since the last change."""
        return tuple(dict.fromkeys(self._from.texts + self._to.texts))

    def add(self, change: Change) -> None:
        """Add a change after all others. A transition begins at the blends of the frame before."""
        current = self.blends(change.frame - 1)
        self.changes.append(change)
        self._to = change.controls.blends
        self._from = Blends(*map(_heaviest, current)) if change.transition_frames else self._to

    def blends(self, frame: int) -> Blends:
        """Return the blends of a frame, which is not before the last change except directly."""
        change = self.changes[-1]
        num_steps = max(0, frame - change.frame) // TRANSITION_STEP_FRAMES + 1
        share = num_steps * TRANSITION_STEP_FRAMES / change.transition_frames if change.transition_frames else 1.0
        if share >= 1 or self._from == self._to:
            return self._to
        return Blends(*(_mixed(before, after, share) for before, after in zip(self._from, self._to, strict=True)))

    def next_change(self, frame: int) -> int | None:
        """Return the first frame after `frame` at which a transition changes the blends; None if it is over."""
        change = self.changes[-1]
        num_steps = max(0, frame - change.frame) // TRANSITION_STEP_FRAMES + 1
        if self._from == self._to or num_steps * TRANSITION_STEP_FRAMES >= change.transition_frames:
            return None
        return change.frame + num_steps * TRANSITION_STEP_FRAMES


def _heaviest(blend: Blend) -> Blend:
    """Keep the texts with the largest weights, so that a row never has more than twice `MAX_LIVE_PROMPTS`."""
    kept = sorted(blend, key=lambda part: -part[1])[:MAX_LIVE_PROMPTS]
    total, kept_total = sum(weight for _, weight in blend), sum(weight for _, weight in kept)
    if len(kept) == len(blend):
        return blend
    return tuple((text, weight * total / kept_total) for text, weight in blend if (text, weight) in kept)


def _mixed(before: Blend, after: Blend, share: float) -> Blend:
    weights = {text: weight * (1 - share) for text, weight in before}
    for text, weight in after:
        weights[text] = weights.get(text, 0.0) + weight * share
    return tuple(weights.items())
