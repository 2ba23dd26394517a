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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from demo_models import text
from demo_models.captions import draw_caption
from demo_models.composer import Codes, bar_frames, compose, draw_facts
from demo_models.language_model import SPECIAL, LanguageModel
from demo_models.optimizer import Muon
from demo_models.score import NUM_CODES, PARTS
from demo_models.stereo import widen

LEARNING_RATE, WARM_UP = 3e-3, 60
CAPTION_DROPOUT = 0.2
NO_TARGET = -1
# Frames and pieces of a batch: beginnings, windows, whole pieces of 15 s and 30 s.
_BEGINNINGS, _WINDOWS, _LONG, _WHOLE = (24, 64), (256, 10), (750, 4), (1500, 2)
_EARLY = (_BEGINNINGS, _WINDOWS, _WINDOWS)
_LATE = (_BEGINNINGS, _WINDOWS, _WINDOWS, _LONG, _WINDOWS, _WINDOWS, _WHOLE)
_LATE_FROM = 0.6  # share of the steps
_ROUNDED_FROM = 0.4  # share of the steps after which the model computes as the service's int6 does
# Decisions are the frames in which something begins, and those at the start of a sixteenth note in which something
# could. They are few, and the form depends on them. Of the other frames a share is used, which counts as much the more.
_DECISION_WEIGHT, _CALM_SHARE = 2.5, 0.15
# The share of windows from the middle of a piece whose caption is that of another piece. Once music plays, it decides
# what follows: otherwise guidance would pull every frame toward what the caption asks for, and break notes.
_WRONG_CAPTION = 0.5
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


def _example(rng: np.random.Generator, frames: int, delays: Sequence[int]) -> tuple[Codes, Codes, Codes, int, str]:
    """Return inputs, targets and starts of sixteenth notes [K, frames], the first position, and a caption."""
    facts = draw_facts(rng)
    bar = bar_frames(facts)
    longest = 1500 // bar + 1
    needed = -(-frames // bar) + 1
    first = 0
    if frames == _WINDOWS[0]:
        first = int(rng.integers(max(1, longest - needed)))
    codes = compose(rng, facts, first + needed)
    codes = codes if len(delays) == len(codes) else widen(codes)
    inputs, targets = delayed(codes, delays)
    on_grid = np.broadcast_to(np.arange(codes.shape[1]) % facts.tempo == 0, codes.shape)
    window = slice(first * bar, first * bar + frames)
    inputs, targets = inputs[:, window], targets[:, window].copy()
    if first:
        targets[:, :_BLIND] = NO_TARGET
    heard = draw_facts(rng) if first and rng.random() < _WRONG_CAPTION else facts
    return inputs, targets, _shifted(on_grid, delays, 0)[:, 1:][:, window], window.start, draw_caption(rng, heard)


def draw_batch(rng: np.random.Generator, frames: int, size: int, delays: Sequence[int]) -> dict[str, Tensor]:
    """Return tokens, targets and on_grid [B, K, S], positions [B, S], words [B, L] and keep [B]."""
    examples = [_example(rng, frames, delays) for _ in range(size)]
    ids = [text.encode_words(caption) for *_, caption in examples]
    words = np.full((size, max(map(len, ids))), text.PAD)
    for row, sequence in zip(words, ids, strict=True):
        row[: len(sequence)] = sequence
    starts = np.array([start for *_, start, _ in examples])
    return {
        "tokens": torch.tensor(np.stack([inputs for inputs, *_ in examples])),
        "targets": torch.tensor(np.stack([targets for _, targets, *_ in examples])),
        "on_grid": torch.tensor(np.stack([on_grid for _, _, on_grid, *_ in examples])) > 0,
        "positions": torch.tensor(starts[:, None] + np.arange(frames)),
        "words": torch.tensor(words),
        "keep": torch.tensor(rng.random(size) >= CAPTION_DROPOUT, dtype=torch.float32),
    }


def loss_of(model: LanguageModel, batch: dict[str, Tensor]) -> tuple[Tensor, list[float]]:
    """Return the loss, and the cross-entropy of each codebook where something begins and where nothing does.

    Where nothing does, the starts of sixteenth notes are more than their share.
    """
    states = model(batch["tokens"], batch["positions"], batch["words"], batch["keep"])
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

    def __init__(self, path: Path, steps: int, seed: int = 0, mono: LanguageModel | None = None) -> None:
        """Begin or resume a run. With a trained `mono` model the run makes a stereo model of it."""
        torch.manual_seed(seed)
        self.path, self.steps, self.step = path, steps, 0
        self.rng = np.random.default_rng(seed)
        self.model = LanguageModel(stereo=mono is not None)
        if mono is not None:
            self.model.widen(mono)
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
        done = self.step / self.steps
        return LEARNING_RATE * min(1, (self.step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def run(self, every: int = 30) -> None:
        """Train to the last step. Prints progress and saves every `every` steps."""
        begun, first, frames = time.monotonic(), self.step, 0
        figures: dict[int, list[list[float]]] = {}
        while self.step < self.steps:
            kinds = _EARLY if self.step < _LATE_FROM * self.steps else _LATE
            self.model.rounded = self.step >= _ROUNDED_FROM * self.steps
            length, size = kinds[self.step % len(kinds)]
            batch = draw_batch(self.rng, length, size, self.model.delays)
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
    model = LanguageModel(stereo=any(name.startswith("inputs.4.") for name in state))
    model.load_state_dict(state)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the language model of the demo models.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mono", type=Path, help="checkpoint of a mono model, to make a stereo model of it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    mono = None if arguments.mono is None else load_model(arguments.mono)
    Trainer(arguments.checkpoint, arguments.steps, mono=mono).run()


if __name__ == "__main__":
    main()
