"""Trains the language model: `python -m demo_models.training build/demo-models/demo.pt --steps 3400`.

Pieces are composed on the fly. Three kinds of batches take turns: beginnings of many pieces, which decide what the
caption asks for; windows of a few bars from any place, with their true positions; and whole pieces. All is seeded, and
a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from demo_models import text
from demo_models.captions import draw_caption
from demo_models.composer import Codes, Facts, bar_frames, compose, draw_facts
from demo_models.dimensions import NUM_CLASSES, NUM_PLACES
from demo_models.language_model import SPECIAL, LanguageModel
from demo_models.melody import compose_with_melody
from demo_models.optimizer import Muon
from demo_models.score import NUM_CODES, PARTS
from demo_models.stereo import widen

LEARNING_RATE, WARM_UP = 3e-3, 60
CAPTION_DROPOUT = 0.2
NO_TARGET = -1
# Frames and pieces of a batch: beginnings, windows, whole pieces of 15 s and 30 s.
_BEGINNINGS, _WINDOWS, _LONG, _WHOLE = (24, 64), (256, 10), (750, 4), (1500, 2)
_FEW_BEGINNINGS, _LONGER = (24, 16), (512, 4)  # of the melody model, whose prefix makes short pieces expensive
_ANYWHERE = (_WINDOWS[0], _LONGER[0])  # lengths that begin at any bar
_EARLY = (_BEGINNINGS, _WINDOWS, _WINDOWS)
_LATE = (_BEGINNINGS, _WINDOWS, _WINDOWS, _LONG, _WINDOWS, _WINDOWS, _WHOLE)
_MELODY = (_LONGER, _LONGER, (750, 3), _LONGER, _WHOLE)
_MELODY_BEGINNINGS = tuple(each for other in _MELODY[1:] for each in (_FEW_BEGINNINGS, other))
_MELODY_LATE = (_FEW_BEGINNINGS, *_MELODY)
_LATE_FROM = 0.6  # share of the steps
_ROUNDED_FROM = 0.4  # share of the steps after which the model computes as the service's int6 does
# Decisions are the frames in which something begins, and those at the start of a sixteenth note in which something
# could. They are few, and the form depends on them. Of the other frames a share is used, which counts as much the more.
_DECISION_WEIGHT, _CALM_SHARE = 2.5, 0.15
# The share of windows from the middle of a piece whose caption is that of another piece. Once music plays, it decides
# what follows: otherwise guidance would pull every frame toward what the caption asks for, and break notes.
_WRONG_CAPTION = 0.5
_WITH_MELODY = 0.7  # share of the melody model's pieces that follow one
# Strengths of guidance in the loss of the melody model, and the weight of the loss without any condition. Otherwise
# guidance would amplify errors in the logits of unlikely codes wherever the melody matters.
_GUIDANCE, _FREE_WEIGHT = (1.0, 3.0, 3.0, 6.0), 0.2
_GUIDED_FROM = 0.2  # share of the steps
# The learning rate of the melody model falls in five cycles, which have these relative lengths. From the third cycle
# on, the lead plays a tune of its own in a share `_ASTRAY` of the bars, which teaches the model to return to the
# melody. In the fourth cycle, half of the batches are beginnings, from which the model learns to choose the instruments
# that the caption asks for. In the last cycle they are fewer, so that the model also learns to continue what plays.
_MELODY_CYCLES, _ASTRAY = (8, 8, 4, 5, 4), 0.3
_BLIND = 8  # columns at the start of a window in which what is announced cannot be known


def delayed(codes: Codes, delays: Sequence[int]) -> tuple[Codes, Codes]:
    """Return inputs and targets [K, T + 3] of the delay pattern for codes [K, T]."""
    sequence = _shifted(codes, delays, SPECIAL)
    targets = np.where(sequence == SPECIAL, NO_TARGET, sequence)
    return sequence[:, :-1], targets[:, 1:]


def _shifted(values: Codes, delays: Sequence[int], fill: int) -> Codes:
    """Return [K, T + 4]: one column of `fill`, then the values [K, T], each row later by its delay."""
    shifted = np.full((len(delays), values.shape[1] + max(delays) + 1), fill)
    for k, delay in enumerate(delays):
        shifted[k, 1 + delay : 1 + delay + values.shape[1]] = values[k]
    return shifted


@dataclass(frozen=True)
class Source:
    """What the pieces of a batch are about, and what is said about them."""

    facts: Callable[[np.random.Generator], Facts] = draw_facts
    caption: Callable[[np.random.Generator, Facts], str] = draw_caption


EVERYTHING = Source()


@dataclass(frozen=True)
class _Example:
    """Inputs, targets and starts of sixteenth notes [K, frames], the first position, and the conditions."""

    inputs: Codes
    targets: Codes
    on_grid: Codes
    start: int
    caption: str
    chroma: NDArray[np.float32] | None  # [NUM_PLACES, 12] for a melody model; zero without a melody


def _example(rng: np.random.Generator, frames: int, model: LanguageModel, astray: float, source: Source) -> _Example:
    facts, delays = source.facts(rng), model.delays
    bar = bar_frames(facts)
    longest = 1500 // bar + 1
    needed = -(-frames // bar) + 1
    first = 0
    if frames in _ANYWHERE:
        first = int(rng.integers(max(1, longest - needed)))
    chroma = None
    if model.melody and rng.random() < _WITH_MELODY:
        codes, facts, classes, is_astray = compose_with_melody(rng, facts, first + needed, astray)
        chroma = np.eye(NUM_CLASSES, dtype=np.float32)[classes]
    else:
        codes = compose(rng, facts, first + needed)
        is_astray = np.zeros(codes.shape[1], bool)
    if model.melody and chroma is None:
        chroma = np.zeros((NUM_PLACES, NUM_CLASSES), np.float32)
    codes = widen(codes) if model.stereo else codes
    inputs, targets = delayed(codes, delays)
    on_grid = np.broadcast_to(np.arange(codes.shape[1]) % facts.tempo == 0, codes.shape)
    window = slice(first * bar, first * bar + frames)
    inputs, targets = inputs[:, window], targets[:, window].copy()
    if first:
        targets[:, :_BLIND] = NO_TARGET
    heard = source.facts(rng) if first and rng.random() < _WRONG_CAPTION else facts
    on_grid = _shifted(on_grid, delays, 0)[:, 1:][:, window]
    if astray:
        of_lead = is_astray & (np.array([part is PARTS[3] for part in model.parts])[:, None])
        targets[_shifted(of_lead, delays, 0)[:, 1:][:, window] > 0] = NO_TARGET
    return _Example(inputs, targets, on_grid, window.start, source.caption(rng, heard), chroma)


def draw_batch(
    rng: np.random.Generator,
    frames: int,
    size: int,
    model: LanguageModel,
    guided: bool = False,
    astray: float = 0.0,
    source: Source = EVERYTHING,
) -> dict[str, Tensor]:
    """Return tokens, targets and on_grid [B, K, S], positions [B, S], words [B, L], keep [B] and a melody's chroma."""
    examples = [_example(rng, frames, model, astray, source) for _ in range(size)]
    ids = [text.encode_words(each.caption) for each in examples]
    words = np.full((size, max(map(len, ids))), text.PAD)
    for row, sequence in zip(words, ids, strict=True):
        row[: len(sequence)] = sequence
    starts = np.array([each.start for each in examples])
    batch = {
        "tokens": torch.tensor(np.stack([each.inputs for each in examples])),
        "targets": torch.tensor(np.stack([each.targets for each in examples])),
        "on_grid": torch.tensor(np.stack([each.on_grid for each in examples])) > 0,
        "positions": torch.tensor(starts[:, None] + np.arange(frames)),
        "words": torch.tensor(words),
        "keep": torch.tensor(rng.random(size) >= CAPTION_DROPOUT, dtype=torch.float32),
    }
    if model.melody:
        batch["chroma"] = torch.tensor(np.stack([each.chroma for each in examples]))  # type: ignore[arg-type]
        batch["guidance"] = torch.tensor(rng.choice(_GUIDANCE if guided else [1.0], size), dtype=torch.float32)
    return batch


def loss_of(model: LanguageModel, batch: dict[str, Tensor]) -> tuple[Tensor, list[float]]:
    """Return the loss, and the cross-entropy of each codebook where something begins and where nothing does.

    Where nothing does, the starts of sixteenth notes are more than their share. For a melody model, the loss is that of
    the guided states plus `_FREE_WEIGHT` times that of the states without conditions.
    """
    inputs = (batch["tokens"], batch["positions"], batch["words"])
    if not model.melody:
        return _loss_of_states(model, batch, model(*inputs, batch["keep"]))
    free = model(*inputs, torch.zeros_like(batch["keep"]), torch.zeros_like(batch["chroma"]))
    conditional = model(*inputs, batch["keep"], batch["chroma"])
    guided = free + batch["guidance"][:, None, None] * (conditional - free)
    loss, figures = _loss_of_states(model, batch, guided)
    return loss + _FREE_WEIGHT * _loss_of_states(model, batch, free)[0], figures


def _loss_of_states(model: LanguageModel, batch: dict[str, Tensor], states: Tensor) -> tuple[Tensor, list[float]]:
    loss, figures = torch.zeros(()), []
    for k in range(len(model.outputs)):
        targets = batch["targets"][:, k]
        successors = torch.tensor(np.append(model.parts[k].successor, NUM_CODES))  # nothing follows SPECIAL
        follows = successors[batch["tokens"][:, k]] == targets
        valid, events = targets != NO_TARGET, ~follows
        could_begin = batch["on_grid"][:, k] if k >= model.parts.count(PARTS[0]) else torch.zeros_like(events)
        decisions = valid & (events | could_begin)
        calm = valid & ~decisions & (torch.rand(targets.shape) < _CALM_SHARE)
        chosen = decisions | calm
        entropy = F.cross_entropy(states[chosen] @ model.output(k).T, targets[chosen], reduction="none")
        weights = torch.where(calm, 1 / _CALM_SHARE, _DECISION_WEIGHT)[chosen]
        loss = loss + (entropy * weights).sum() / weights.sum()
        figures += [entropy[events[chosen]].mean().item(), entropy[~events[chosen]].mean().item()]
    return loss / len(model.parts), figures


class Trainer:
    """A training run that saves everything that it needs to go on."""

    def __init__(
        self, path: Path, steps: int, seed: int = 0, mono: LanguageModel | None = None, melody: bool = False
    ) -> None:
        """Begin or resume a run. With a trained `mono` model the run makes a stereo or a melody model of it."""
        torch.manual_seed(seed)
        self.path, self.steps, self.step = path, steps, 0
        lengths = _MELODY_CYCLES if melody else (1,)
        self.cycles = [round(length * steps / sum(lengths)) for length in lengths]
        self.rng = np.random.default_rng(seed)
        self.model = LanguageModel(stereo=mono is not None and not melody, melody=melody)
        if mono is not None:
            self.model.begin_as(mono)
        matrices = [p for p in self.model.layers.parameters() if p.dim() == 2]
        rest = [p for p in self.model.parameters() if all(p is not matrix for matrix in matrices)]
        self.optimizers = (Muon(matrices), torch.optim.AdamW(rest, betas=(0.9, 0.97), weight_decay=0.01))
        if path.exists():
            self._resume()

    def _resume(self) -> None:
        saved: dict[str, Any] = torch.load(self.path, weights_only=False)
        self.step = saved["step"]
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.rng.bit_generator.state = saved["rng"]
        torch.set_rng_state(saved["torch_rng"])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def learning_rate(self) -> float:
        step, cycles = self.step, list(self.cycles)
        while len(cycles) > 1 and step >= cycles[0]:
            step -= cycles.pop(0)
        done = step / cycles[0]
        return LEARNING_RATE * min(1, (self.step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _kinds(self) -> tuple[tuple[int, int], ...]:
        """Return the frames and pieces of the batches that take turns at this step."""
        if self.model.melody:
            cycle = sum(self.step >= end for end in accumulate(self.cycles[:-1]))
            return (_MELODY, _MELODY, _MELODY, _MELODY_BEGINNINGS, _MELODY_LATE)[cycle]
        return _LATE if self.step >= _LATE_FROM * self.steps else _EARLY

    def run(self, every: int = 30) -> None:
        """Train to the last step. Prints progress and saves every `every` steps."""
        begun, first, frames = time.monotonic(), self.step, 0
        figures: dict[int, list[list[float]]] = {}
        while self.step < self.steps:
            kinds = self._kinds()
            self.model.rounded = self.step >= _ROUNDED_FROM * self.cycles[0]
            length, size = kinds[self.step % len(kinds)]
            guided = self.step >= _GUIDED_FROM * self.cycles[0]
            astray = _ASTRAY if self.step >= sum(self.cycles[:2]) else 0.0
            batch = draw_batch(self.rng, length, size, self.model, guided, astray)
            figures.setdefault(length, []).append(self._train(batch))
            frames += length * size
            if self.step % every == 0 or self.step == self.steps:
                seconds = time.monotonic() - begun
                left = seconds / (self.step - first) * (self.steps - self.step)
                print(f"step {self.step}/{self.steps}, {frames / seconds:.0f} frames/s, {left / 60:.0f} min left")
                for length, rows in sorted(figures.items()):
                    print(f"    {length:4} frames: {_summary(self.model, rows)}", flush=True)
                figures.clear()
                self.save()

    def _train(self, batch: dict[str, Tensor]) -> list[float]:
        """Take one step, and return the loss and its figures."""
        loss, figures = loss_of(self.model, batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            optimizer.step()
        self.step += 1
        return [loss.item(), *figures]


def _summary(model: LanguageModel, rows: list[list[float]]) -> str:
    """Return the mean loss, and each codebook's mean cross-entropy where something begins and where nothing does."""
    loss, *figures = np.nanmean(rows, 0)
    parts = zip(model.parts, figures[::2], figures[1::2], strict=True)
    return f"loss {loss:.4f}, " + ", ".join(f"{part.name} {event:.3f} / {calm:.4f}" for part, event, calm in parts)


def load_model(path: Path) -> LanguageModel:
    """Return the model of a training checkpoint."""
    state = torch.load(path, weights_only=False)["model"]
    model = LanguageModel(stereo="inputs.4.shared" in state, melody="embed_melody.weight" in state)
    model.load_state_dict(state)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the language model of the demo models.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mono", type=Path, help="checkpoint of a mono model, to make another model of it")
    parser.add_argument("--melody", action="store_true", help="make a melody model and not a stereo model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    mono = None if arguments.mono is None else load_model(arguments.mono)
    Trainer(arguments.checkpoint, arguments.steps, mono=mono, melody=arguments.melody).run()


if __name__ == "__main__":
    main()
