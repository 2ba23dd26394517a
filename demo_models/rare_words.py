"""Trains the embeddings of rare words of a trained model; nothing else changes.

`solo`, `alone` and `unaccompanied` say two things at once, no drums and no bass, and only one caption in forty has one
of them. In this last stage all captions do. The training run of the models that ship gave these words no meaning, so
they learned them in this stage alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from demo_models import text
from demo_models.captions import draw_caption, words_of
from demo_models.composer import Facts, draw_facts
from demo_models.language_model import LanguageModel
from demo_models.training import Source, draw_batch, loss_of

STATEMENT = "no rhythm section"
WORDS = tuple(word for word, meanings in text.VOCABULARY.items() if STATEMENT in meanings)
_LEARNING_RATE = 0.1
# Frames and pieces; all are beginnings. The melody's prefix makes short pieces expensive.
_BATCHES, _MELODY_BATCHES = ((24, 48), (150, 8)), ((24, 16), (150, 8))
_SEED = 7


def _draw_facts(rng: np.random.Generator) -> Facts:
    return replace(draw_facts(rng), drums=False, bass=None)


def _draw_caption(rng: np.random.Generator, facts: Facts) -> str:
    while not set(words_of(caption := draw_caption(rng, facts))) & set(WORDS):
        pass
    return caption


def learn(model: LanguageModel, steps: int) -> None:
    """Train the words of a model, which computes as int6 does meanwhile. Prints the loss."""
    torch.manual_seed(_SEED)
    rng = np.random.default_rng(_SEED)
    words = model.words
    ids = [text.WORD_IDS[word] for word in WORDS]
    rows = ((words.own, ids), (words.effect, ids), (words.shared, [words.row_of(STATEMENT)]))
    model.requires_grad_(False)
    masks: list[tuple[Tensor, Tensor]] = []
    for parameter, trained in rows:
        parameter.requires_grad_(True)
        mask = torch.zeros(len(parameter), 1)
        mask[trained] = 1
        masks.append((parameter, mask))
    optimizer = torch.optim.Adam([parameter for parameter, _ in masks])
    before, model.rounded = model.rounded, True
    batches = _MELODY_BATCHES if model.melody else _BATCHES
    losses = []
    for step in range(steps):
        frames, size = batches[step % len(batches)]
        batch = draw_batch(rng, frames, size, model, source=Source(_draw_facts, _draw_caption))
        loss, _ = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, mask in masks:
            assert parameter.grad is not None
            parameter.grad *= mask
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / steps)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 49 or step + 1 == steps:
            print(f"rare words: step {step + 1}/{steps}, loss {np.mean(losses[-50:]):.4f}", flush=True)
    model.rounded = before
    model.requires_grad_(True)
