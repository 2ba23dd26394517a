"""The language model: training form, exported form, and training itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo_models import export, rare_words, text
from demo_models.composer import Codes
from demo_models.language_model import SPECIAL, LanguageModel
from demo_models.stereo import following, leaders, widen
from demo_models.training import NO_TARGET, Trainer, delayed, draw_batch

MONO = (0, 1, 2, 3)


def test_the_delay_pattern_shifts_each_part_by_one_frame() -> None:
    inputs, targets = delayed(np.arange(20).reshape(4, 5), MONO)
    assert inputs.shape == targets.shape == (4, 8)
    assert inputs[1].tolist() == [SPECIAL, SPECIAL, 5, 6, 7, 8, 9, SPECIAL]
    assert targets[1].tolist() == [NO_TARGET, 5, 6, 7, 8, 9, NO_TARGET, NO_TARGET]


def test_audiocrafts_model_computes_what_the_training_did(
    loaded: Any, untrained: LanguageModel, pieces: list[Codes]
) -> None:
    """Half precision of the exported weights is the only difference."""
    tokens, _ = delayed(pieces[2][:, :120], MONO)
    conditions, _ = loaded.condition_tensors("slow lo-fi with piano, no bass")
    loaded.to_float32()
    found = loaded.lm(torch.tensor(tokens)[None], [], conditions)[0]
    words = torch.tensor([text.encode_words("slow lo-fi with piano, no bass")])
    with torch.no_grad():
        states = untrained(torch.tensor(tokens)[None], torch.arange(tokens.shape[1])[None], words, torch.ones(1))
        expected = torch.stack([states[0] @ table().T for table in untrained.outputs]) * export.SHARPNESS
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_numbers_that_ship_are_small(checkpoint: Path) -> None:
    assert (checkpoint / "demo.safetensors").stat().st_size < 5e6
    assert (checkpoint / "codec.safetensors").stat().st_size < 6e6


def test_a_batch_has_true_positions_and_captions(untrained: LanguageModel) -> None:
    batch = draw_batch(np.random.default_rng(7), 256, 4, untrained)
    assert batch["tokens"].shape == batch["targets"].shape == (4, 4, 256)
    assert (batch["positions"][:, 1:] - batch["positions"][:, :-1] == 1).all()
    late = batch["positions"][:, 0] > 0
    assert late.any()
    assert (batch["tokens"][late] != SPECIAL).all()


def test_rare_words_are_learned_and_nothing_else_changes() -> None:
    model = LanguageModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rare_words.learn(model, 3)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["words.shared", "words.own", "words.effect"]
    words = text.WordTable()
    words.load_state_dict({name.removeprefix("words."): before[name] for name in before if name.startswith("words.")})
    rows = (words() != model.words()).any(1).nonzero().flatten().tolist()
    assert rows == [text.WORD_IDS[word] for word in ("solo", "alone", "unaccompanied")]


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Trainer(tmp_path / "whole.pt", 4)
    whole.run(every=4)
    part = Trainer(tmp_path / "part.pt", 4)
    part.steps = 2
    part.run(every=2)
    rest = Trainer(tmp_path / "part.pt", 4)
    assert rest.step == 2
    rest.run(every=2)
    for name, tensor in rest.model.state_dict().items():
        if "learning" not in name:
            assert torch.isfinite(tensor).all()
    assert rest.step == whole.step == 4


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "model.pt", 60)
    batch = draw_batch(np.random.default_rng(8), 24, 16, trainer.model)
    first = trainer._train(batch)[0]
    for _ in range(8):
        last = trainer._train(batch)[0]
    assert last < 0.9 * first


def test_a_stereo_model_begins_as_the_mono_model(untrained: LanguageModel, pieces: list[Codes]) -> None:
    wide = LanguageModel(stereo=True).eval()
    wide.begin_as(untrained)
    words, keep = torch.tensor([text.encode_words("happy waltz")]), torch.ones(1)
    mono_tokens = torch.tensor(delayed(pieces[0][:, :40], MONO)[0])[None]
    stereo_tokens = torch.tensor(delayed(widen(pieces[0])[:, :40], wide.delays)[0])[None]
    positions = torch.arange(mono_tokens.shape[2])[None]
    with torch.no_grad():
        difference = wide(stereo_tokens, positions, words, keep) - untrained(mono_tokens, positions, words, keep)
    assert difference.abs().max() < 1e-4


def test_the_followers_of_a_stereo_piece_need_only_the_past(pieces: list[Codes]) -> None:
    wide = widen(pieces[1])
    assert wide.shape == (8, pieces[1].shape[1])
    assert (leaders(wide) == pieces[1]).all()
    assert following(wide) == 1
    assert (wide[2, 1:] == wide[3, :-1]).all()  # chords: the left follows the right
    assert (wide[7, 1:] == wide[6, :-1]).all()  # lead: the right follows the left
